//! What a guest is refused before anything is done for it, at the service that is shipped.

use protocol::{Consistency, ErrorCode, Ticket};

use super::stage::{Stage, conclude, cut, request};

/// A ticket is for who was given it, for the step that it was given for; a wrong one spoils nothing.
#[test]
fn another_ticket_cuts_and_concludes_nothing_and_the_right_one_still_does() {
    let stage = Stage::set();
    let mut guest = stage.greeted();
    let prepared = guest.prepare(&request(Consistency::Filesystem)).unwrap();
    let another = Ticket::random();
    for wrong in [cut(another), conclude(another), conclude(prepared.ticket)] {
        assert_eq!(guest.asks(&wrong).unwrap_err().code, ErrorCode::OutOfOrder, "{wrong:?}");
    }
    guest.asks(&cut(prepared.ticket)).unwrap();
    for wrong in [conclude(another), cut(prepared.ticket)] {
        assert_eq!(guest.asks(&wrong).unwrap_err().code, ErrorCode::OutOfOrder, "{wrong:?}");
    }
    guest.asks(&conclude(prepared.ticket)).unwrap();
    assert_eq!(stage.listed(), [prepared.id.to_string()]);
}

#[test]
fn a_pool_whose_floor_is_reached_takes_no_snapshot_and_is_told_as_a_quota() {
    let mut stage = Stage::set();
    stage.configure(&stage.config_text().replace("min_free = \"1MiB\"", "min_free = \"900GiB\""));
    stage.restart();
    let refused = stage.take(&request(Consistency::Filesystem)).unwrap_err();
    assert_eq!((refused.code, refused.code.exit_code()), (ErrorCode::QuotaExceeded, 4), "{refused}");
    assert!(refused.message.as_str().contains("must stay free"), "{refused}");
    assert!(stage.on_storage().is_empty() && stage.listed().is_empty());
}

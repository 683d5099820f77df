//! A guest that is silent after the cut, for longer than the host waits for it.

use std::sync::Arc;
use std::time::Duration;

use host_proxy::session::{self, Peer};
use host_proxy::transport;
use protocol::{ErrorCode, Reply, Request};

use super::guest::{conclude, cut, hello};
use super::stage::{Stage, UUID, asked};

const LIMIT: Duration = Duration::from_secs(600);

/// The disasters' matrix found `there is nothing to conclude under this ticket`, exit code 1: nobody learns from that what
/// happened, or what to do.
#[tokio::test(start_paused = true)]
async fn a_guest_that_concludes_too_late_is_told_what_became_of_its_snapshot() {
    let stage = Stage::set();
    let (mut guest, host) = tokio::io::duplex(256 * 1024);
    let peer = Peer { vm: UUID.parse().unwrap(), via: "test".to_owned() };
    tokio::spawn(session::run(Arc::clone(&stage.service), peer, host));
    let mut ask = async |request: Request| {
        transport::send(&mut guest, &request).await.unwrap();
        transport::receive::<Reply>(&mut guest, LIMIT).await.unwrap()
    };
    ask(hello(None)).await;
    let Reply::Prepared(prepared) = ask(Request::Prepare(asked(None))).await else { panic!("not prepared") };
    assert!(matches!(ask(cut(prepared.ticket)).await, Reply::CutDone(_)));
    tokio::time::sleep(Duration::from_secs(70)).await;
    let Reply::Error(error) = ask(conclude(prepared.ticket)).await else { panic!("it was concluded twice") };
    assert_eq!((error.code, error.code.exit_code()), (ErrorCode::TimedOut, 9), "{error}");
    assert!(error.hint.as_str().contains("hostsnap list"), "{error}");
    assert!(stage.list(9, None).await.is_empty(), "it was to be worth more than a crash");
    assert_eq!(ask(Request::Ping(1)).await, Reply::Pong(1));
}

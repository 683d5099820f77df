//! Wrong command lines, and a service that is not there.

use protocol::Consistency;

use super::stage::{Stage, hostsnapd, request};

/// It was told in plain text: a script that reads JSON could not tell its own mistake from a crash.
#[test]
fn a_wrong_command_line_is_told_as_json_where_json_was_asked_for() {
    for arguments in [
        &["create", "--json", "--nonsense"][..],
        &["show", "--json"],
        &["no-such-command", "--json"],
        &["list", "--json", "--label", "x"],
        &["create", "--json", "vm", "--keep-for", "x"],
    ] {
        let run = hostsnapd(arguments);
        let error = run.error();
        assert_eq!((run.code, error["code"].as_str()), (2, Some("BadRequest")), "{arguments:?}: {error}");
        assert!(error["hint"].as_str().unwrap().contains("--help"), "{error}");
        assert_eq!(run.out, "");
        let plain: Vec<_> = arguments.iter().copied().filter(|word| *word != "--json").collect();
        let run = hostsnapd(&plain);
        assert_eq!(run.code, 2);
        assert!(run.err.starts_with("error: "), "{}", run.err);
    }
}

#[test]
fn a_service_that_is_down_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let control = control.to_str().unwrap();
    for command in [&["list"][..], &["show", "latest"], &["create", "db1"], &["delete", "x"], &["reconcile"]]
    {
        let run = hostsnapd(&[command, &["--json", "--control", control]].concat());
        assert_eq!(run.code, 3, "{command:?}: {}", run.err);
        let error = run.error();
        assert!(error["message"].as_str().unwrap().contains(control), "{error}");
        assert!(error["hint"].as_str().unwrap().contains("systemctl"), "{error}");
    }
}

#[test]
fn what_is_not_there_is_not_found_and_what_there_is_is_named() {
    let stage = Stage::set();
    for (command, hint) in [
        (&["show", "latest"][..], "list"),
        (&["delete", "abc"], "list"),
        (&["create", "nobody"], "hostsnapd vms"),
        (&["list", "--vm", "nobody"], "hostsnapd vms"),
    ] {
        let run = stage.admin(&[command, &["--json"]].concat());
        assert_eq!(run.code, 5, "{command:?}: {}", run.err);
        assert!(run.error()["hint"].as_str().unwrap().contains(hint), "{}", run.err);
    }
}

/// They were looked up and deleted one by one: what came before the typing error was gone.
#[test]
fn a_typing_error_among_several_deletes_nothing_and_what_was_deleted_is_one_array() {
    let stage = Stage::set();
    let ids: Vec<String> =
        (0..2).map(|_| stage.take(&request(Consistency::Filesystem)).unwrap().id.to_string()).collect();
    let run = stage.admin(&["delete", "--json", &ids[0], "nonsense", &ids[1]]);
    assert_eq!(run.code, 5, "{}", run.err);
    assert_eq!((run.out.as_str(), stage.listed().len(), stage.on_storage().len()), ("", 2, 2));

    let deleted = stage.admin(&["delete", "--json", &ids[0], &ids[1]]).json();
    let told: Vec<_> = deleted.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(told, ids);
    assert!(stage.listed().is_empty() && stage.on_storage().is_empty());
}

//! The guest's command and daemon while something is quiesced or frozen.

use std::time::Duration;

use harness::link::Stream;
use harness::wait::wait_until;
use protocol::agent::{AgentCreate, AgentPhase, AgentReply, AgentRequest};
use protocol::frame::{self, HEADER};
use protocol::{BoundedVec, Consistency, PORT, RequestId, VERSIONS};
use rustix::process::Signal;

use super::stage::{LIMIT, Stage};

/// Installs a hook that waits in `pre-freeze` until it is told to go on.
fn waiting_hook(stage: &Stage) {
    stage.vm.guest.sh("mkdir -p /etc/hostsnap/hooks.d && chmod 755 /etc/hostsnap /etc/hostsnap/hooks.d && \
         printf '#!/bin/sh\\necho $1 >> /run/hook-calls\\n[ $1 = pre-freeze ] || exit 0\\n\
         while [ ! -e /run/go ]; do sleep 0.1; done\\n' > /etc/hostsnap/hooks.d/wait && \
         chmod 755 /etc/hostsnap/hooks.d/wait");
}

fn hook_runs(stage: &Stage) {
    wait_until("the hook runs", LIMIT, || stage.vm.guest.run("test -e /run/hook-calls").status == 0);
}

#[test]
fn a_command_that_is_stopped_releases_what_it_quiesced_and_tells_the_host() {
    let stage = Stage::set("stopped", &["data"]);
    stage.mount("/dev/vda", "/data");
    waiting_hook(&stage);
    let create = stage.vm.guest.spawn("echo $$ > /run/create; exec hostsnap --json create /data");
    hook_runs(&stage);
    stage.vm.guest.sh("kill -TERM $(cat /run/create); touch /run/go");
    let ended = create.wait();
    assert_eq!(ended.status, 128 + 15, "it ends by the signal: {}", ended.stderr);
    assert_eq!(stage.vm.guest.sh("cat /run/hook-calls"), "pre-freeze\nfreeze-failed\npost-thaw\n");
    assert!(stage.on_storage().is_empty(), "{:?}", stage.on_storage());
    stage.vm.guest.sh("touch /data/written && sync");
    // Nothing is left behind that would be in the next one's way.
    assert_eq!(stage.create("/data")["state"], "ready");
}

/// The host's end of a conversation with the guest's daemon.
struct Talk(Box<dyn Stream>);

impl Talk {
    fn connect(stage: &Stage) -> Self {
        let mut stream = None;
        wait_until("the daemon listens", LIMIT, || {
            stream = stage.vm.link.connect(PORT, LIMIT).ok();
            stream.is_some()
        });
        let mut talk = Self(stream.unwrap());
        let hello = talk.ask(&AgentRequest::Hello(VERSIONS));
        assert!(matches!(hello, AgentReply::Hello { .. }), "{hello:?}");
        talk
    }

    fn send(&mut self, request: &AgentRequest) {
        self.0.write_all(&frame::encode(request).unwrap()).unwrap();
    }

    fn receive(&mut self) -> AgentReply {
        let mut header = [0; HEADER];
        self.0.read_exact(&mut header).unwrap();
        let mut payload = vec![0; frame::payload_len(header).unwrap()];
        self.0.read_exact(&mut payload).unwrap();
        frame::decode(&payload).unwrap()
    }

    fn ask(&mut self, request: &AgentRequest) -> AgentReply {
        self.send(request);
        self.receive()
    }

    fn phase(&mut self) -> AgentPhase {
        match self.ask(&AgentRequest::Status) {
            AgentReply::Status(status) => status.phase,
            other => panic!("{other:?}"),
        }
    }
}

/// KubeVirt's agent can't answer a ping while frozen (kubevirt#16777), and its host takes it for dead.
#[test]
fn the_daemon_answers_while_the_whole_machine_is_frozen() {
    let stage = Stage::set("frozen-daemon", &["data"]);
    stage.mount("/dev/vda", "/data");
    waiting_hook(&stage);
    // The program itself is on what is frozen.
    stage.vm.guest.sh("cp $(command -v hostsnap) /data/hostsnap");
    stage.vm.guest.spawn("exec /data/hostsnap daemon");

    let mut asking = Talk::connect(&stage);
    let mut watching = Talk::connect(&stage);
    asking.send(&AgentRequest::Create(AgentCreate {
        request: RequestId::random(),
        paths: BoundedVec::try_from(vec!["/data".parse().unwrap()]).unwrap(),
        labels: Default::default(),
        note: "".parse().unwrap(),
        minimum: Consistency::Crash,
        keep_for_s: None,
        freeze_timeout_ms: 60_000,
    }));
    hook_runs(&stage);
    assert_eq!(watching.phase(), AgentPhase::Preparing);
    // A host that hangs: the guest freezes, and waits for a cut that does not come.
    stage.service.signal(Signal::STOP);
    stage.vm.guest.sh("touch /run/go");
    wait_until("the guest is frozen", LIMIT, || watching.phase() == AgentPhase::Frozen);
    for number in 0..20 {
        assert_eq!(watching.ask(&AgentRequest::Ping(number)), AgentReply::Pong(number));
        std::thread::sleep(Duration::from_millis(10));
    }
    // A conversation that begins while frozen is held, too.
    assert_eq!(Talk::connect(&stage).phase(), AgentPhase::Frozen);
    stage.service.signal(Signal::CONT);

    let created = asking.receive();
    let AgentReply::Created(record) = created else { panic!("{created:?}") };
    assert_eq!(record.consistency, Consistency::Application, "{record:?}");
    assert_eq!(watching.phase(), AgentPhase::Idle);
    stage.vm.guest.sh("touch /data/written && sync");
}

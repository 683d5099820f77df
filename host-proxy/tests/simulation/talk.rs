//! A guest's end of a conversation, over which messages and answers are lost.

use std::time::Duration;

use host_proxy::transport;
use protocol::evidence::{CallEvidence, Evidence, FileSystemEvidence, Freeze};
use protocol::frame;
use protocol::message::{Hello, Reply, Request};
use protocol::text::Line;
use protocol::{BootId, BoundedVec, VERSIONS, VmUuid};
use tokio::io::{AsyncWriteExt, DuplexStream};

use crate::host::Host;

/// How long a guest waits for an answer.
const PATIENCE: Duration = Duration::from_secs(200);

/// The connection is gone, and with it what was said last or the answer to it.
pub(crate) struct Lost;

pub(crate) struct Talk {
    host: Host,
    who: String,
    stream: DuplexStream,
}

impl Talk {
    /// A conversation that the host has agreed to.
    pub(crate) async fn begin(host: &Host, vm: VmUuid, who: &str, boot: BootId) -> Result<Self, Lost> {
        let stream = host.connect(vm).ok_or(Lost)?;
        let mut talk = Self { host: host.clone(), who: who.to_owned(), stream };
        let hello = Hello {
            versions: VERSIONS,
            agent_version: "0.1.0".parse().expect("a name"),
            boot_id: Some(boot),
            vm_uuid: Some(vm),
        };
        match talk.ask(&Request::Hello(hello)).await? {
            Reply::Hello(_) => Ok(talk),
            other => {
                host.stage.broken(format!("{who} is not welcome: {other:?}"));
                Err(Lost)
            }
        }
    }

    /// Says something and waits for the final answer.
    pub(crate) async fn ask(&mut self, request: &Request) -> Result<Reply, Lost> {
        let what = short(request);
        self.host.stage.turn(format!("{} says {what}", self.who)).await;
        if self.host.stage.permille(|weather| weather.loses_messages) {
            return Err(self.lose(request).await);
        }
        transport::send(&mut self.stream, request).await.map_err(|_| Lost)?;
        loop {
            match transport::receive(&mut self.stream, PATIENCE).await {
                Ok(Reply::Progress(_)) => {}
                Ok(reply) => {
                    self.host.stage.say(|| format!("{} hears {}", self.who, short(&reply)));
                    return Ok(reply);
                }
                Err(error) => {
                    self.host.stage.say(|| format!("{} hears nothing after {what}: {error}", self.who));
                    return Err(Lost);
                }
            }
        }
    }

    /// The message does not come, comes in part, or comes and nobody waits for the answer.
    async fn lose(&mut self, request: &Request) -> Lost {
        let bytes = frame::encode(request).expect("a message");
        let (how, sent) = match self.host.stage.chance(|chance| chance.below(3)) {
            0 => ("is lost", &bytes[..0]),
            1 => ("is lost in the middle", &bytes[..bytes.len() / 2]),
            _ => ("comes, and the answer is lost", &bytes[..]),
        };
        self.host.stage.say(|| format!("{}: that {how}", self.who));
        let _ = self.stream.write_all(sent).await;
        Lost
    }
}

/// A message in so many words.
fn short(message: &impl std::fmt::Debug) -> String {
    let text = format!("{message:?}");
    text.chars().take(160).collect()
}

/// What an agent says that froze one file system.
pub(crate) fn evidence(held: bool) -> Evidence {
    let call = Some(CallEvidence { at_us: 0, took_us: 1, errno: 0 });
    let fs = FileSystemEvidence {
        mount_point: "/data".parse().expect("a path"),
        fs_type: "ext4".parse().expect("a name"),
        freeze: call,
        thaw: call,
    };
    let freeze = if held { Freeze::Held } else { Freeze::NotHeld(Line::lossy("the deadline passed")) };
    Evidence {
        freeze,
        file_systems: vec![fs].try_into().expect("one is not too many"),
        hooks: BoundedVec::empty(),
    }
}

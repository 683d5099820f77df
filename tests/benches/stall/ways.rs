//! One snapshot in each way, measured: the application's stall by the application itself, the window
//! by whoever froze.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cut::{self, Bare};
use crate::figures::Measured;
use crate::stage::{AGENT_PORT, Stage};

/// Where the floor's round trip ends on the host.
const PORT: u32 = 1989;
/// A host that has not answered then never does.
const LIMIT: Duration = Duration::from_secs(120);

/// A way to take a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Floor,
    Hostsnap,
    Agent,
    AgentDataOnly,
}

impl Way {
    pub(crate) const ALL: [Self; 4] = [Self::Floor, Self::Hostsnap, Self::Agent, Self::AgentDataOnly];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Hostsnap => "hostsnap",
            Self::Agent => "qemu-ga",
            Self::AgentDataOnly => "qemu-ga data",
        }
    }

    /// Takes one, and removes it.
    pub(crate) fn measure(self, stage: &Stage, dirty_mib: u32) -> Result<Measured> {
        let probe = format!("stall-probe run /data/records /data/dirty {dirty_mib}");
        match self {
            Self::Hostsnap => {
                let probed = stage.vm.guest.json(&format!("{probe} hostsnap --json create /data"));
                let record = said(&probed)?;
                stage
                    .vm
                    .guest
                    .sh(&format!("hostsnap delete --yes {}", record["id"].as_str().context("an id")?));
                Measured::of(&probed, &record["timing"])
            }
            Self::Floor => floor(stage, &probe),
            Self::Agent => by_agent(stage, &probe, &json!({ "execute": "guest-fsfreeze-freeze" })),
            Self::AgentDataOnly => {
                let list = json!({ "execute": "guest-fsfreeze-freeze-list", "arguments": { "mountpoints": ["/data"] } });
                by_agent(stage, &probe, &list)
            }
        }
    }
}

/// What the command that was probed printed.
fn said(probed: &Value) -> Result<Value> {
    serde_json::from_str(probed["said"].as_str().context("what it said")?).context("what it said is JSON")
}

fn floor(stage: &Stage, probe: &str) -> Result<Measured> {
    let mut bare = Bare::prepare(stage)?;
    let listener = stage.vm.link.listen(PORT)?;
    let running = stage.vm.guest.spawn(&format!("{probe} stall-probe floor /data {PORT}"));
    let mut guest = listener.accept(LIMIT)?;
    guest.read_exact(&mut [0]).context("be asked for the cut")?;
    let done = bare.cut();
    guest.write_all(b"d")?;
    let output = running.wait();
    done?;
    cut::is_there(stage)?;
    ensure!(output.status == 0, "{}{}", output.stdout, output.stderr);
    bare.undo()?;
    let probed: Value = serde_json::from_str(&output.stdout)?;
    Measured::of(&probed, &said(&probed)?["timing"])
}

/// The probed command only waits; the host does the rest, as its script would.
fn by_agent(stage: &Stage, probe: &str, freeze: &Value) -> Result<Measured> {
    stage.vm.guest.sh("rm -f /run/begun /run/done; mkfifo /run/begun /run/done");
    let mut bare = Bare::prepare(stage)?;
    let mut agent = Agent::connect(stage)?;
    let script = "echo > /run/begun; read line < /run/done";
    // A probe that fails before it runs the script says so too: else nobody would end the wait. Who opens a FIFO waits for
    // its reader, and must not hold what the probe's own reader waits for.
    let ended = "code=$?; [ $code = 0 ] || (exec > /dev/null 2>&1; echo ended > /run/begun) & exit $code";
    let running = stage.vm.guest.spawn(&format!("{probe} /bin/sh -c '{script}'; {ended}"));
    if stage.vm.guest.sh("read line < /run/begun; echo $line").contains("ended") {
        let output = running.wait();
        bail!("the probe ended early: {}{}", output.stdout, output.stderr);
    }

    let began = Instant::now();
    let frozen = agent.execute(freeze)?;
    let froze = Instant::now();
    let done = bare.cut();
    let cut_at = Instant::now();
    let thawed = agent.execute(&json!({ "execute": "guest-fsfreeze-thaw" }))?;
    let ended = Instant::now();
    stage.vm.guest.sh("echo > /run/done");
    let output = running.wait();
    done?;
    cut::is_there(stage)?;
    ensure!(frozen == thawed && frozen.as_u64() > Some(0), "froze {frozen}, thawed {thawed}");
    ensure!(output.status == 0, "{}{}", output.stdout, output.stderr);
    bare.undo()?;
    let probed: Value = serde_json::from_str(&output.stdout)?;
    let us = |from: Instant, to: Instant| u64::try_from((to - from).as_micros()).unwrap_or(u64::MAX);
    let timing = json!({
        "flush_us": 0, "freeze_us": us(began, froze), "cut_us": us(froze, cut_at),
        "thaw_us": us(cut_at, ended), "stall_us": us(began, ended),
    });
    Measured::of(&probed, &timing)
}

/// qemu-ga, as a host's script talks to it: a JSON object a line (docs/interop/qemu-ga-ref).
struct Agent(BufReader<UnixStream>);

impl Agent {
    fn connect(stage: &Stage) -> Result<Self> {
        let stream = UnixStream::connect(stage.vm.port(AGENT_PORT)).context("reach qemu-ga")?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(Self(BufReader::new(stream)))
    }

    fn execute(&mut self, command: &Value) -> Result<Value> {
        writeln!(self.0.get_mut(), "{command}")?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("qemu-ga said {line:?}"))?;
        ensure!(answer.get("return").is_some(), "{command}: {answer}");
        Ok(answer["return"].clone())
    }
}

//! `vsock-probe CID PORT`: connects from a source port that anybody may use, says `Hello`, and prints
//! what the host answers. The guest's agent itself always comes from below 1024.

use std::io::{Read, Write};

use anyhow::{Context, Result};
use protocol::frame;
use protocol::message::Hello;
use protocol::{Reply, Request, VERSIONS};

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|word| word.parse::<u32>());
    let cid = arguments.next().context("a CID")??;
    let port = arguments.next().context("a port")??;
    let mut stream = vsock::VsockStream::connect_with_cid_port(cid, port)?;
    let agent_version = "0.0.0".parse().expect("a valid name");
    let hello = Hello { versions: VERSIONS, agent_version, boot_id: None, vm_uuid: None };
    // The host may have hung up before it reads this.
    let _ = stream.write_all(&frame::encode(&Request::Hello(hello))?);
    let mut header = [0; frame::HEADER];
    stream.read_exact(&mut header)?;
    let mut payload = vec![0; frame::payload_len(header)?];
    stream.read_exact(&mut payload)?;
    println!("{:?}", frame::decode::<Reply>(&payload)?);
    Ok(())
}

//! Generates the messages from eraftpb.proto: parsed by protox, so no `protoc` is run, and with every
//! `bytes` field as `bytes::Bytes`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=eraftpb.proto");
    let files = protox::compile(["eraftpb.proto"], ["."])?;
    prost_build::Config::new().bytes(["."]).compile_fds(files)?;
    Ok(())
}

//! Generates the gRPC code from `proto/` without a `protoc` binary: `protox`, written in Rust, compiles the
//! files to a descriptor set, and the tonic generator starts from that. Code for the real and for the simulated
//! world comes out of it; `tonic::include_proto!` picks one.
use prost::Message;
use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("balsa_descriptor.bin");
    let files = ["proto/balsa/v1/balsa.proto", "proto/balsa/peers/peers.proto"];
    fs::write(&descriptors, protox::compile(files, ["proto", "proto/raft"])?.encode_to_vec())?;
    tonic_build::configure()
        .bytes(["."])
        // Queues of messages move and grow: a message is some three hundred bytes.
        .boxed(".balsa.peers.GroupMessage.message")
        .extern_path(".eraftpb", "::raft::eraftpb")
        .file_descriptor_set_path(&descriptors)
        .skip_protoc_run()
        .compile_protos(&files, &["proto", "proto/raft"])?;
    Ok(())
}

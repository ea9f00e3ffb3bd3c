//! The `balsa` binary: the command line comes with its own module.

fn main() {}

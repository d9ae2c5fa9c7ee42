//! `build`: build, and print the path of the binary.

use anyhow::Result;
use lexopt::Arg::Long;
use xshell::Shell;

use crate::{
    builder::{self, Builder},
    cli::{Args, TargetArg},
    host::Host,
    kubernetes::Cluster,
    state::Arch,
};

pub const HELP: &str = "\
Build as `deploy` does, and print the path of the binary

Usage: cargo xtask build [TARGET] [OPTIONS]

Options:
      --build container|host    Build in a container (default for servers) or with local cargo
  -h, --help                    Show this help
";

pub fn run(sh: &Shell, mut args: Args) -> Result<()> {
    let mut target_arg = TargetArg::default();
    let mut builder = None;
    let help = args.help();
    while let Some(arg) = args.next()? {
        match arg {
            Long("build") => builder = Some(args.value("--build")?),
            other => target_arg.take(other, help)?,
        }
    }
    let target = target_arg.find()?;
    let arch = match Cluster::of(sh, target) {
        Some(cluster) => cluster.arch(),
        None => match &Host::all(sh, target)[0] {
            host if host.remote.is_some() => host.state()?.arch,
            _ => Arch::this_machine()?,
        },
    };
    let builder = builder.unwrap_or_else(|| Builder::default_for(&target));
    let binary = builder::build(sh, builder, arch, target.profile)?;
    println!("{}", binary.display());
    Ok(())
}

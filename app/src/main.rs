//! A small web server that is replaced while it serves: `cargo xtask deploy`.

mod drain;
mod events;
mod handover;
mod healthcheck;
mod identity;
mod listen;
mod log;
mod pages;
mod ready;
mod routes;
mod serve;
mod settings;
mod signals;

use std::process::ExitCode;

use identity::Identity;
use serve::Server;
use settings::Settings;
use signals::Signals;
use tokio::runtime::Runtime;

const USAGE: &str = "\
usage: app               serve
       app healthcheck   ask the instance of this name whether it serves
       app --version

environment: LISTEN=127.0.0.1:3000   where, unless systemd passes a socket
             DRAIN_SECONDS=30        how long open connections may take to end";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os()
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (argv0, args) = args.split_first().unwrap_or((&"", &[]));
    let identity = Identity::from_argv0(argv0);

    let done = match args {
        [] => Settings::from_env().and_then(|settings| serve(identity, &settings)),
        ["healthcheck"] => return healthcheck(identity),
        ["--version"] => {
            println!("{}", identity.version);
            Ok(())
        }
        ["--help"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            log::error(&message);
            ExitCode::FAILURE
        }
    }
}

/// Tells whoever asked, and not the log.
fn healthcheck(identity: Identity) -> ExitCode {
    let asked = Settings::from_env()
        .and_then(|settings| healthcheck::run(identity.instance, settings.listen));
    match asked {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn serve(identity: Identity, settings: &Settings) -> Result<(), String> {
    // The socket comes before the runtime and its threads: what systemd passes
    // is this process's to take once, and nothing else may be opened first.
    let socket = listen::passed_or_bound(settings.listen)?;
    let runtime = Runtime::new().map_err(|e| format!("cannot start the runtime: {e}"))?;

    let done = runtime.block_on(async {
        let mut signals = Signals::install()?;
        let (phase, watch_phase) = drain::phases();
        let router = routes::router(identity, watch_phase.clone());
        ready::check(&router).await?;

        let listener = socket.listen(identity.instance)?;
        log::info(&format!("listening on {}", listener.address()));
        let server = Server::start(listener, router.clone(), watch_phase);
        ready::announce(identity, router);

        signals.first().await;
        tokio::select! {
            () = drain::drain(server, phase, settings.drain) => {}
            // Somebody at a terminal does not want to wait.
            () = signals.interrupt() => log::warning("interrupted"),
        }
        Ok(())
    });

    // What is still open is cut off, not waited for.
    runtime.shutdown_background();
    done
}

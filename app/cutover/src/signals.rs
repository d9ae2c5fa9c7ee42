//! SIGTERM and SIGINT: both begin the drain. A second SIGINT ends it at once, because
//! somebody at a terminal does not want to wait; a second SIGTERM changes nothing.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn install() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    pub async fn first(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    pub async fn interrupt(&mut self) {
        self.interrupt.recv().await;
    }
}

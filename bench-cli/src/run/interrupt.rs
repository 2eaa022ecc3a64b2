//! Ctrl-C and SIGTERM: the first one drains and reports what there is, a second one ends at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use gpufeed_engine::watch::Watch;
use tokio::signal::unix::{SignalKind, signal};

use crate::output;

/// Whether the user wants it to end, and the stretch of work to be told.
#[derive(Debug, Default)]
pub(crate) struct Interrupt {
    asked: AtomicBool,
    current: Mutex<Option<Watch>>,
}

impl Interrupt {
    /// Listens from now on.
    pub(crate) fn listen() -> Arc<Self> {
        let this = Arc::new(Self::default());
        let told = Arc::clone(&this);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                let (Ok(mut interrupts), Ok(mut ends)) =
                    (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
                else {
                    return;
                };
                loop {
                    tokio::select! { _ = interrupts.recv() => {}, _ = ends.recv() => {} }
                    told.ask();
                }
            });
        });
        this
    }

    fn ask(&self) {
        if self.asked.swap(true, Ordering::Relaxed) {
            output::say("gpufeed: ended at once; nothing more is written");
            std::process::exit(1);
        }
        output::say("gpufeed: interrupted, letting operations finish; once more ends at once");
        if let Some(watch) = &*self.current.lock().unwrap_or_else(PoisonError::into_inner) {
            watch.cancel();
        }
    }

    /// Whether the user wants it to end.
    pub(crate) fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// A view of the next stretch of work, cancelled by an interrupt.
    pub(super) fn watch(&self) -> Watch {
        let watch = Watch::new();
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch.clone());
        if self.asked() {
            watch.cancel();
        }
        watch
    }
}

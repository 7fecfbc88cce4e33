//! A server from its socket to its end.

use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use rwkv_edge::{Error, ErrorKind, Result};
use tokio::runtime;
use tokio::sync::{watch, Semaphore};

use super::config::Config;
use super::limits::{raise_open_files, Admission};
use super::{connections, router, App};

/// A server that has its address; [`run`](Self::run) answers.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
    stop: Arc<watch::Sender<usize>>,
}

/// Ends a server from elsewhere.
#[derive(Clone)]
pub struct Stopper(Arc<watch::Sender<usize>>);

impl Stopper {
    /// No connection is taken any more, and answers may end within [`Config::drain`]; a second time, nothing is waited
    /// for. What has not ended by then ends with an error.
    pub fn stop(&self) {
        self.0.send_modify(|n| *n += 1);
    }
}

impl Server {
    /// Takes the address. Clients that connect wait until [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// Those of [`Config::check`]; [`ErrorKind::Argument`] for names that stand twice, and no model at all;
    /// [`ErrorKind::Io`] when the address is taken.
    pub fn bind(config: Config) -> Result<Self> {
        let argument = |text: String| Err(Error::new(ErrorKind::Argument, text));
        if config.models.is_empty() {
            return argument("no model to serve".into());
        }
        for (i, model) in config.models.iter().enumerate() {
            if config.models[..i]
                .iter()
                .any(|other| other.name == model.name)
            {
                return argument(format!("two models are called {:?}", model.name));
            }
            model.model().tokenizer()?;
        }
        config.check()?;
        let keys = config.keys()?;
        let listen = config.listen;
        let io = |e: std::io::Error| {
            Error::new(ErrorKind::Io, format!("cannot listen on {listen}: {e}"))
        };
        let listener = TcpListener::bind(listen).map_err(io)?;
        listener.set_nonblocking(true).map_err(io)?;
        let address = listener.local_addr().map_err(io)?;
        raise_open_files();
        let n_slow = std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2));
        let app = Arc::new(App {
            models: config.models.clone(),
            keys,
            admission: Admission::new(config.running_max, config.waiting_max),
            metrics: config.metrics.clone(),
            body_memory: Arc::new(Semaphore::new(
                config.bodies_bytes_max.min(Semaphore::MAX_PERMITS),
            )),
            slow_work: Arc::new(Semaphore::new(n_slow)),
            is_ending: AtomicBool::new(false),
            cut: watch::Sender::new(false),
            config,
        });
        Ok(Server {
            listener,
            address,
            app,
            stop: Arc::new(watch::Sender::new(0)),
        })
    }

    /// The address, with the port that was taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the server from another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Answers until it is told to end, by a [`Stopper`] or a signal.
    ///
    /// # Errors
    ///
    /// When there are no threads or no signals to be had.
    pub fn run(self) -> Result<()> {
        let io = |e: std::io::Error| Error::new(ErrorKind::Io, format!("cannot serve: {e}"));
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("rwkv-edge-http")
            .enable_all()
            .build()
            .map_err(io)?;
        let app = self.app.clone();
        let result = runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(self.listener)?;
            if self.app.config.signals {
                tokio::spawn(hear_signals(self.app.clone(), self.stop.clone())?);
            }
            let ended = self.stop.subscribe();
            tokio::spawn(tell_ending(self.app.clone(), self.stop.subscribe()));
            Ok(connections::serve(listener, router(&self.app), self.app.clone(), ended).await)
        });
        // What is still running was given its time.
        runtime.shutdown_timeout(Duration::from_millis(200));
        let n_cut = result.map_err(io)?;
        if n_cut > 0 {
            app.say(&format!("{n_cut} connections did not end in time"));
        }
        Ok(())
    }
}

impl App {
    fn say(&self, line: &str) {
        if let Some(log) = &self.config.log {
            log(line);
        }
    }

    fn read_keys_again(&self) {
        let Some(keys) = &self.keys else {
            return;
        };
        match keys.read_again() {
            Ok(n) => self.say(&format!("API keys were read again: {n}")),
            Err(error) => self.say(&format!("API keys stay as they were: {error}")),
        }
    }
}

async fn tell_ending(app: Arc<App>, mut stop: watch::Receiver<usize>) {
    if stop.wait_for(|n| *n > 0).await.is_ok() {
        app.is_ending.store(true, Ordering::Relaxed);
        app.say("the server ends: answers that have begun may end");
    }
}

/// Ends the server, at a second signal at once.
#[cfg(unix)]
fn hear_signals(
    app: Arc<App>,
    stop: Arc<watch::Sender<usize>>,
) -> std::io::Result<impl std::future::Future<Output = ()>> {
    use tokio::signal::unix::{signal, SignalKind};

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => {
                    app.read_keys_again();
                    continue;
                }
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.send_modify(|n| *n += 1);
        }
    })
}

#[cfg(not(unix))]
fn hear_signals(
    _app: Arc<App>,
    stop: Arc<watch::Sender<usize>>,
) -> std::io::Result<impl std::future::Future<Output = ()>> {
    Ok(async move {
        while tokio::signal::ctrl_c().await.is_ok() {
            stop.send_modify(|n| *n += 1);
        }
    })
}

//! A server that OpenAI's clients speak to: HTTP in front of one model.
//!
//! ```text
//! connection ── routes ── completion, conversation ──► Task ──► Scheduler, which owns the Session
//!      ▲           │ (guard, body, refusal)            queue        │ a step of each in turn
//!      └── stream ◄┴─────────── reply ◄──────────── TaskEvent ◄─── RunningAnswer
//! ```
//!
//! Tasks of an asynchronous runtime on a thread of its own read requests, encode them, and write replies;
//! the thread that calls [`ReadyServer::run`] computes. Each answer has a channel, whose receiver is dropped
//! when its client leaves: the answer's next step sees that, and its place is free. Before the model is in
//! memory the server answers `/health` with how far it is.

mod answer;
mod body;
mod completion;
mod connection;
mod conversation;
mod guard;
mod log;
mod metrics;
mod page;
mod refusal;
mod reply;
mod responses;
mod routes;
mod scheduler;
mod serving;
mod stream;
mod task;
mod texts;
mod tools;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, RwLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderValue, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::chat::Chat;
use crate::encoding::Float;
use crate::engine::{Engine, Event, Model, Observer};
use crate::error::{Error, Result};
use guard::Guard;
pub use log::ServerLog;
use metrics::Metrics;
use refusal::Refusal;
use scheduler::Scheduler;
use serving::Serving;
use task::{ServerOrder, TaskQueue};

/// Requests that are read and encoded at a time, which takes memory: up to 200 MB for one that is all values.
const ENCODERS: usize = 2;

/// How to serve.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// A name or an address of this machine.
    pub host: String,
    /// 0 is any that is free.
    pub port: u16,
    /// What requests must show, if anything.
    pub key: Option<String>,
    /// Whose pages may ask, besides its own: an origin, or `*`.
    pub cors: Option<String>,
    /// Answers that may wait for their turn.
    pub queue: usize,
}

/// A server whose model is not there yet.
pub struct Server {
    app: Arc<App>,
    address: SocketAddr,
    http: Http,
    queue: usize,
}

/// The thread that speaks HTTP, until this is dropped.
struct Http {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Http {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("no panics in it");
        }
    }
}

/// What all requests share.
struct App {
    guard: Guard,
    metrics: Metrics,
    log: ServerLog,
    /// In seconds since 1970.
    started: u64,
    /// Bytes of weights that there will be, and that there are.
    loading: [AtomicU64; 2],
    state: RwLock<State>,
}

enum State {
    Loading,
    Ready(Arc<Serving>),
    Ended(String),
}

impl App {
    /// The model.
    ///
    /// # Errors
    /// 503, where there is none yet, or none any more.
    fn serving(&self) -> std::result::Result<Arc<Serving>, Refusal> {
        match &*self.state.read().expect("no panics in it") {
            State::Ready(serving) => Ok(serving.clone()),
            State::Loading => Err(Refusal::unavailable("the model is being loaded")),
            State::Ended(why) => Err(Refusal::unavailable(why.clone())),
        }
    }

    fn health(&self) -> (StatusCode, Value) {
        let [whole, done] = [0, 1].map(|i: usize| self.loading[i].load(Ordering::Relaxed));
        let progress = if whole > 0 { done as f64 / whole as f64 } else { 0.0 };
        match &*self.state.read().expect("no panics in it") {
            State::Ready(_) => (StatusCode::OK, json!({ "status": "ok" })),
            State::Loading => (
                StatusCode::SERVICE_UNAVAILABLE,
                json!({ "status": "loading", "progress": progress }),
            ),
            State::Ended(why) => {
                (StatusCode::SERVICE_UNAVAILABLE, json!({ "status": "ended", "message": why }))
            }
        }
    }

    fn set(&self, state: State) {
        *self.state.write().expect("no panics in it") = state;
    }
}

/// Ends a server's run from another thread: running answers get their last chunk.
#[derive(Clone)]
pub struct ServerStop(Arc<App>);

impl ServerStop {
    pub fn stop(&self) {
        if let Ok(serving) = self.0.serving() {
            serving.queue.stop();
        }
    }
}

impl Server {
    /// Listens, and says to all who come that the model is not there yet. `log` is given a line a request.
    ///
    /// # Errors
    /// An address that cannot be had; an origin that is no header's value.
    pub fn start(options: &ServeOptions, log: ServerLog) -> Result<Self> {
        let ServeOptions { host, port, key, cors, queue } = options;
        let cannot = |error| Error::failed(format!("cannot listen on {host}:{port}: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(ENCODERS)
            .build();
        let runtime = runtime.map_err(cannot)?;
        let listener = runtime.block_on(TcpListener::bind((&**host, *port))).map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let cors = cors.as_deref().map(HeaderValue::from_str).transpose();
        let cors = cors.map_err(|_| Error::usage("`cors` is not an origin: http://HOST or *"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let app = Arc::new(App {
            guard: Guard::new(key.as_deref(), cors, address.ip().is_loopback()),
            metrics: Metrics::default(),
            log,
            started: now.as_secs(),
            loading: Default::default(),
            state: RwLock::new(State::Loading),
        });
        let (stop, stopped) = watch::channel(false);
        let router = routes::router(app.clone());
        let work = move || {
            runtime.block_on(connection::serve(listener, router, stopped));
            // A request that is still being encoded answers nobody.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name("http".to_owned()).spawn(work).map_err(cannot)?;
        Ok(Self { app, address, http: Http { stop, thread: Some(thread) }, queue: *queue })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// An observer that tells whoever asks how far the weights have come, before it tells `next`.
    pub fn observer(&self, next: Observer) -> Observer {
        let app = self.app.clone();
        Arc::new(move |event| {
            let [whole, done] = &app.loading;
            match event {
                Event::WeightsBegin(bytes) => whole.store(bytes, Ordering::Relaxed),
                Event::Weights(bytes) => drop(done.fetch_add(bytes, Ordering::Relaxed)),
                _ => {}
            }
            next(event)
        })
    }

    /// The model is there: requests are taken from now on. `name`: what clients call it
    ///
    /// # Errors
    /// What is wrong with the model's tokenizer.
    pub fn ready(
        self,
        name: String,
        model: Arc<Model>,
        chat: Result<Chat>,
        engine: Engine,
    ) -> Result<ReadyServer> {
        model.tokenizer()?;
        let (queue, orders) = TaskQueue::new(self.queue);
        let context = engine.plan.sizes.context;
        let serving = Arc::new(Serving { model, chat, name, context, queue });
        self.app.set(State::Ready(serving.clone()));
        Ok(ReadyServer { server: self, serving, engine, orders })
    }
}

/// A server with its model.
pub struct ReadyServer {
    server: Server,
    serving: Arc<Serving>,
    engine: Engine,
    orders: Receiver<ServerOrder>,
}

impl ReadyServer {
    /// What ends [`Self::run`].
    pub fn stopper(&self) -> ServerStop {
        ServerStop(self.server.app.clone())
    }

    /// Answers requests until it is stopped.
    ///
    /// # Errors
    /// What runs the model has failed.
    pub fn run(self) -> Result<()> {
        let Self { server, serving, engine, orders } = self;
        let sizes = engine.plan.sizes;
        let decodes_as_prefill = sizes.decode_as_prefill || sizes.activations == Float::F32;
        let app = &server.app;
        let (session, tokenizer) = (engine.session(), serving.model.tokenizer()?);
        let mut scheduler =
            Scheduler::new(session, tokenizer, decodes_as_prefill, &app.metrics, app.log.clone());
        let ended = scheduler.run(&orders);
        app.set(State::Ended(match &ended {
            Ok(()) => "the server ends".to_owned(),
            Err(error) => error.to_string(),
        }));
        scheduler.end(&ended);
        drop(orders);
        if ended.is_err() {
            // Whoever watches sees why.
            thread::sleep(Duration::from_secs(1));
        }
        drop(server.http);
        ended
    }
}

//! What can be asked, by path.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ORIGIN};
use axum::http::{Method, Response, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::body::RequestBody;
use super::page::page;
use super::refusal::Refusal;
use super::reply::{ChoicesReply, ReplyForm, ReplyWriter};
use super::responses::{self, ResponsesReply};
use super::serving::{Manner, Serving};
use super::stream::ReplyStream;
use super::task::TaskEvents;
use super::{App, completion, conversation, texts};

type Result<T> = std::result::Result<T, Refusal>;

/// Of a request: several times the text of the longest context.
const MOST_BODY_BYTES: usize = 4 << 20;
/// What a request's body may take to come.
const BODY_TIME: Duration = Duration::from_secs(60);

const HEALTH: &str = "/health";
const METRICS: &str = "/metrics";
const MODELS: &str = "/v1/models";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const TOKENIZE: &str = "/tokenize";
const DETOKENIZE: &str = "/detokenize";
const TEMPLATE: &str = "/apply-template";

/// What metrics tell apart.
const ENDPOINTS: [&str; 10] =
    ["/", HEALTH, METRICS, MODELS, CHAT, COMPLETIONS, RESPONSES, TOKENIZE, DETOKENIZE, TEMPLATE];

pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(page))
        .route(HEALTH, get(health))
        .route(METRICS, get(metrics))
        .route(MODELS, get(models))
        .route(CHAT, post(async |app, request| answer(app, request, CHAT, ask_chat).await))
        .route(
            COMPLETIONS,
            post(async |app, request| answer(app, request, COMPLETIONS, ask_completions).await),
        )
        .route(
            RESPONSES,
            post(async |app, request| answer(app, request, RESPONSES, ask_responses).await),
        )
        .route(TOKENIZE, post(async |app, request| texts(app, request, texts::tokenize).await))
        .route(DETOKENIZE, post(async |app, request| texts(app, request, texts::detokenize).await))
        .route(
            TEMPLATE,
            post(async |app, request| texts(app, request, texts::apply_template).await),
        )
        .fallback(async || {
            Refusal::new(StatusCode::NOT_FOUND, "there is no such path").into_response()
        })
        .method_not_allowed_fallback(async || {
            let message = "this path takes another method";
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, message).into_response()
        })
        .layer(from_fn_with_state(app.clone(), watch))
        .with_state(app)
}

/// Lets through who may ask, and keeps count.
async fn watch(State(app): State<Arc<App>>, request: Request, next: Next) -> Response<Body> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let origin = request.headers().get(ORIGIN).cloned();
    let mut response = match app.guard.check(&method, &path, request.headers()) {
        Err(refusal) => refusal.into_response(),
        Ok(()) if method == Method::OPTIONS => {
            let empty = Response::builder().status(StatusCode::NO_CONTENT).body(Body::empty());
            empty.expect("the parts are constants")
        }
        Ok(()) => next.run(request).await,
    };
    app.guard.allow(origin.as_ref(), response.headers_mut());
    let endpoint = ENDPOINTS.iter().find(|endpoint| **endpoint == path).unwrap_or(&"other");
    app.metrics.request(endpoint, response.status().as_u16());
    if let Some(refusal) = response.extensions().get::<Refusal>() {
        let status = refusal.status.as_u16();
        (app.log)(&format!("{method} {path}: {status}, {}", refusal.message()));
    }
    response
}

async fn health(State(app): State<Arc<App>>) -> Response<Body> {
    let (status, health) = app.health();
    json_response(status, &health)
}

async fn metrics(State(app): State<Arc<App>>) -> Response<Body> {
    let waiting = app.serving().map_or(0, |serving| serving.queue.waiting());
    let page = Body::from(app.metrics.page(waiting));
    let page = Response::builder().header(CONTENT_TYPE, "text/plain; version=0.0.4").body(page);
    page.expect("the parts are constants")
}

async fn models(State(app): State<Arc<App>>) -> Response<Body> {
    let list = |serving: Arc<Serving>| {
        let model = json!({
            "id": serving.name,
            "object": "model",
            "created": app.started,
            "owned_by": "chaski",
            "max_model_len": serving.context,
        });
        json_response(StatusCode::OK, &json!({ "object": "list", "data": [model] }))
    };
    app.serving().map_or_else(Refusal::into_response, list)
}

/// What is made of texts and ids without the model.
async fn texts(
    State(app): State<Arc<App>>,
    request: Request,
    make: fn(&Serving, RequestBody) -> Result<Value>,
) -> Response<Body> {
    let made = async {
        let (serving, bytes) = (app.serving()?, body(request.into_body()).await?);
        unbroken(move || make(&serving, RequestBody::parse(&bytes)?)).await
    };
    let respond = |made: Value| json_response(StatusCode::OK, &made);
    made.await.map_or_else(Refusal::into_response, respond)
}

/// What `work` comes to, which may take a while, on another thread.
async fn unbroken<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let broken = "the request broke the server";
    let broken = |_| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, broken);
    spawn_blocking(work).await.map_err(broken)?
}

/// What a request is to be given, and whether as a stream.
struct Asked {
    reply: Box<dyn ReplyWriter>,
    prompts: Vec<Vec<u32>>,
    manner: Manner,
}

fn ask_chat(serving: &Arc<Serving>, body: RequestBody) -> Result<Asked> {
    let (prompt, manner) = conversation::read(serving, body)?;
    let prompts = vec![prompt];
    let reply = Box::new(ChoicesReply::new(ReplyForm::Chat, serving.clone(), &manner, &prompts)?);
    Ok(Asked { reply, prompts, manner })
}

fn ask_completions(serving: &Arc<Serving>, body: RequestBody) -> Result<Asked> {
    let (prompts, manner) = completion::read(serving, &body)?;
    let reply =
        Box::new(ChoicesReply::new(ReplyForm::Completion, serving.clone(), &manner, &prompts)?);
    Ok(Asked { reply, prompts, manner })
}

fn ask_responses(serving: &Arc<Serving>, body: RequestBody) -> Result<Asked> {
    let (prompt, manner, repeated) = responses::read(serving, body)?;
    let reply = Box::new(ResponsesReply::new(serving.clone(), &manner, repeated));
    Ok(Asked { reply, prompts: vec![prompt], manner })
}

/// Has the model answer a request. Where the client leaves, this is dropped.
async fn answer(
    State(app): State<Arc<App>>,
    request: Request,
    endpoint: &'static str,
    ask: fn(&Arc<Serving>, RequestBody) -> Result<Asked>,
) -> Response<Body> {
    let arrived = Instant::now();
    let (answers, events) = unbounded_channel();
    let answered = async {
        let (serving, bytes) = (app.serving()?, body(request.into_body()).await?);
        // Encoding a long text takes a while.
        let asked = unbroken(move || {
            let asked = ask(&serving, RequestBody::parse(&bytes)?)?;
            serving.ask(endpoint, arrived, &asked.prompts, &asked.manner, &answers)?;
            Ok(asked)
        });
        let Asked { reply, manner, .. } = asked.await?;
        if manner.stream { Ok(stream(events, reply)) } else { whole(events, reply).await }
    };
    answered.await.unwrap_or_else(Refusal::into_response)
}

fn stream(events: TaskEvents, reply: Box<dyn ReplyWriter>) -> Response<Body> {
    let stream = Response::builder()
        .header(CONTENT_TYPE, "text/event-stream; charset=utf-8")
        .header(CACHE_CONTROL, "no-cache")
        .body(Body::new(ReplyStream::new(events, reply)));
    stream.expect("the parts are constants")
}

async fn whole(mut events: TaskEvents, mut reply: Box<dyn ReplyWriter>) -> Result<Response<Body>> {
    while !reply.has_ended() {
        let ends = || Refusal::unavailable("the server ends");
        let (index, event) = events.recv().await.ok_or_else(ends)?;
        reply.add(index, event)?;
    }
    Ok(json_response(StatusCode::OK, &reply.whole()))
}

fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    let response = Response::builder().status(status).header(CONTENT_TYPE, "application/json");
    response.body(Body::from(value.to_string())).expect("the parts are constants")
}

/// A request's body, which has a limit. Of one that is longer the rest is read and forgotten, up to a limit
/// as well: a client that is still writing does not see the reply.
async fn body(body: Body) -> Result<Bytes> {
    let mut body = pin!(body);
    let read = async {
        let (mut bytes, mut length) = (Vec::new(), 0);
        while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
            let frame = frame.map_err(|error| Refusal::invalid(format!("broken body: {error}")))?;
            let Some(data) = frame.data_ref() else { continue };
            length += data.len();
            if length <= MOST_BODY_BYTES {
                bytes.extend_from_slice(data);
            } else if length > 4 * MOST_BODY_BYTES {
                break;
            }
        }
        if length > MOST_BODY_BYTES {
            let message = format!("the request's body is over {MOST_BODY_BYTES} bytes");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        Ok(bytes.into())
    };
    let late = |_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the request's body does not come");
    timeout(BODY_TIME, read).await.map_err(late)?
}

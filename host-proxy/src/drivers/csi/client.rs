//! Calling the plugin: gRPC over its Unix socket, and a limit on every call.

use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use prost::Message;
use prost::bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use super::codec::Bytewise;
use super::codes::Refusal;
use super::secrets::Secrets;
use crate::drivers::{DriverError, Kind};

/// The plugin's context ends a little later than our patience, so that it is we who say that it was late.
const GRACE: Duration = Duration::from_millis(500);

/// How long a plugin that is at work on what is to be removed is asked again.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Between two questions to a plugin that is at work on the same.
pub(super) const PAUSE: Duration = Duration::from_millis(200);

/// The way to one plugin.
#[derive(Debug)]
pub(super) struct Client {
    endpoint: String,
    timeout: Duration,
    /// Connected at the first call; anew after one that nobody answered.
    channel: Mutex<Option<Channel>>,
}

impl Client {
    /// The plugin behind this socket; nothing is connected yet.
    pub(super) fn new(socket: &Path, timeout: Duration) -> Result<Self, DriverError> {
        let unusable = |why: &str| {
            DriverError::new(Kind::NotFound, format!("use the endpoint {}: {why}", socket.display()))
        };
        let path = socket.to_str().ok_or_else(|| unusable("its path is no UTF-8"))?;
        runtime()?;
        Ok(Self { endpoint: path.to_owned(), timeout, channel: Mutex::new(None) })
    }

    /// The socket.
    pub(super) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Calls a method and waits for its answer.
    pub(super) fn call<Q, A>(&self, method: &'static str, request: Q, secrets: &Secrets) -> Result<A, Refusal>
    where
        Q: Message + 'static,
        A: Message + Default,
    {
        self.call_all(method, vec![request], secrets).pop().expect("one request has one answer")
    }

    /// As `call`; again while the plugin is at work on the same, until `until`.
    pub(super) fn insist<Q, A>(
        &self,
        method: &'static str,
        request: Q,
        secrets: &Secrets,
        until: Instant,
    ) -> Result<A, Refusal>
    where
        Q: Message + Clone + 'static,
        A: Message + Default,
    {
        loop {
            match self.call(method, request.clone(), secrets) {
                Err(refusal) if refusal.code == Code::Aborted && Instant::now() + PAUSE < until => {
                    thread::sleep(PAUSE);
                }
                answer => return answer,
            }
        }
    }

    /// Calls a method once for each request, side by side. The answers are in the order of the requests.
    pub(super) fn call_all<Q, A>(
        &self,
        method: &'static str,
        requests: Vec<Q>,
        secrets: &Secrets,
    ) -> Vec<Result<A, Refusal>>
    where
        Q: Message + 'static,
        A: Message + Default,
    {
        let count = requests.len();
        let refuse = |refusal: Refusal| (0..count).map(|_| Err(refusal.clone())).collect();
        let (runtime, channel) = match runtime()
            .map_err(|error| Refusal::of_ours(&error))
            .and_then(|runtime| Ok((runtime, self.channel(runtime)?)))
        {
            Ok(ready) => ready,
            Err(refusal) => return refuse(refusal),
        };
        let limit = self.timeout;
        let answers: Vec<Result<Bytes, Status>> = runtime.block_on(async move {
            let mut calls = JoinSet::new();
            for (place, request) in requests.into_iter().enumerate() {
                let channel = channel.clone();
                calls.spawn(async move { (place, one(channel, method, request, limit).await) });
            }
            let mut answers: Vec<_> =
                (0..count).map(|_| Err(Status::internal("the call panicked in this host"))).collect();
            while let Some(done) = calls.join_next().await {
                if let Ok((place, answer)) = done {
                    answers[place] = answer;
                }
            }
            answers
        });
        let answers: Vec<Result<A, Refusal>> = answers
            .into_iter()
            .map(|answer| {
                let bytes = answer.map_err(|status| Refusal::new(method, &status, secrets))?;
                A::decode(bytes).map_err(|error| Refusal::garbage(method, error.to_string()))
            })
            .collect();
        // Whoever did not answer may never do so on this connection; another may be behind the socket by now.
        if answers.iter().any(|answer| answer.as_ref().is_err_and(Refusal::is_silence)) {
            self.channel.lock().expect("no holder of this lock panics").take();
        }
        answers
    }

    /// Calls a method whose answer is a stream of messages, each of which is waited for as one answer is, and all of them for
    /// `limit`. What `each` does not take is garbage.
    pub(super) fn stream<Q, A>(
        &self,
        method: &'static str,
        request: Q,
        secrets: &Secrets,
        limit: Duration,
        mut each: impl FnMut(A) -> Result<(), &'static str>,
    ) -> Result<(), Refusal>
    where
        Q: Message + 'static,
        A: Message + Default,
    {
        let runtime = runtime().map_err(|error| Refusal::of_ours(&error))?;
        let channel = self.channel(runtime)?;
        let until = Instant::now() + limit;
        let refused = |status: &Status| Refusal::new(method, status, secrets);
        let bounded = || self.timeout.min(until.saturating_duration_since(Instant::now()));
        let outcome: Result<(), Refusal> = runtime.block_on(async {
            let begin = begin_stream(channel, method, request, limit);
            let mut stream = in_time(bounded(), begin).await.map_err(|status| refused(&status))?;
            loop {
                let next = in_time(bounded(), stream.message()).await;
                let Some(bytes) = next.map_err(|status| refused(&status))? else { return Ok(()) };
                let some = A::decode(bytes).map_err(|error| Refusal::garbage(method, error.to_string()))?;
                each(some).map_err(|what| Refusal::garbage(method, what))?;
            }
        });
        if outcome.as_ref().is_err_and(Refusal::is_silence) {
            self.channel.lock().expect("no holder of this lock panics").take();
        }
        outcome
    }

    fn channel(&self, runtime: &Runtime) -> Result<Channel, Refusal> {
        let mut kept = self.channel.lock().expect("no holder of this lock panics");
        if let Some(channel) = &*kept {
            return Ok(channel.clone());
        }
        let _context = runtime.enter();
        let endpoint = Endpoint::from_shared(format!("unix://{}", self.endpoint))
            .and_then(|endpoint| endpoint.user_agent(concat!("hostsnap/", env!("CARGO_PKG_VERSION"))))
            .map_err(|error| Refusal::of_ours(&error))?;
        let channel = endpoint.connect_timeout(self.timeout).connect_lazy();
        Ok(kept.insert(channel).clone())
    }
}

async fn one<Q: Message + 'static>(
    channel: Channel,
    method: &'static str,
    request: Q,
    limit: Duration,
) -> Result<Bytes, Status> {
    let call = async {
        let (mut grpc, request, path) = ready(channel, method, request, limit).await?;
        grpc.unary(request, path, Bytewise::<Q>::default()).await.map(tonic::Response::into_inner)
    };
    in_time(limit, call).await
}

async fn begin_stream<Q: Message + 'static>(
    channel: Channel,
    method: &'static str,
    request: Q,
    limit: Duration,
) -> Result<Streaming<Bytes>, Status> {
    let (mut grpc, request, path) = ready(channel, method, request, limit).await?;
    grpc.server_streaming(request, path, Bytewise::<Q>::default()).await.map(tonic::Response::into_inner)
}

async fn ready<Q>(
    channel: Channel,
    method: &'static str,
    request: Q,
    limit: Duration,
) -> Result<(Grpc<Channel>, Request<Q>, PathAndQuery), Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
    let mut request = Request::new(request);
    request.set_timeout(limit + GRACE);
    Ok((grpc, request, PathAndQuery::from_static(method)))
}

async fn in_time<T>(limit: Duration, call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded(format!("no answer within {} ms", limit.as_millis()));
    tokio::time::timeout(limit, call).await.map_err(late)?
}

/// One thread keeps all connections alive, whoever waits for an answer: drivers block, see
/// docs/decisions/0004-blocking-drivers.md. It lives as long as the process does.
fn runtime() -> Result<&'static Runtime, DriverError> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let made = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("hostsnap-csi")
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| DriverError::io("start the thread that talks to CSI plugins", error))?;
    Ok(RUNTIME.get_or_init(|| made))
}

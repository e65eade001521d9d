//! A reply as server-sent events. Where the client leaves, it is dropped, and with it the receiver, which
//! whoever generates the answer sees.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Bytes, HttpBody};
use hyper::body::Frame;

use super::reply::ReplyWriter;
use super::task::{TaskEvent, TaskEvents};

pub struct ReplyStream {
    events: TaskEvents,
    reply: Box<dyn ReplyWriter>,
    /// Written next.
    due: VecDeque<Bytes>,
    has_ended: bool,
}

impl ReplyStream {
    pub fn new(events: TaskEvents, reply: Box<dyn ReplyWriter>) -> Self {
        Self { events, reply, due: VecDeque::new(), has_ended: false }
    }

    fn take(&mut self, index: usize, event: TaskEvent) {
        match self.reply.add(index, event) {
            Ok(()) => {
                self.due.extend(self.reply.due(index).into_iter().map(Bytes::from));
                self.has_ended = self.reply.has_ended();
            }
            Err(refusal) => {
                self.due.push_back(self.reply.failed(&refusal).into());
                self.has_ended = true;
            }
        }
    }
}

impl HttpBody for ReplyStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.due.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if this.has_ended {
                return Poll::Ready(None);
            }
            match ready!(this.events.poll_recv(context)) {
                Some((index, event)) => this.take(index, event),
                None => this.has_ended = true,
            }
        }
    }
}

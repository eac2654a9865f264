//! Gets that go to one server together.
//!
//! Each request of a proxy asks for a few keys, and many requests are served at a time. What has come while others were
//! asking, or before it was their turn to be sent, is asked for by one command, and the answer is shared out: to send, to
//! read and to be woken costs more than all else about a get. A get that comes alone goes out at once. An error is everybody's
//! whose get was sent.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{AttemptError, Connection, Failure, RawValue, Server, read_values, write};

/// Keys of one command. So many still fit into the 1,024 bytes that a memcached looks through at once.
const AT_ONCE: usize = 24;

/// The gets of one server that have not been sent.
#[derive(Default)]
pub(super) struct Gets(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    gets: VecDeque<Get>,
    /// A task sees to it that they are.
    sending: bool,
}

/// One key, and who asks for it.
struct Get {
    key: String,
    tell: oneshot::Sender<Result<Option<RawValue>, Arc<Failure>>>,
}

impl Gets {
    /// True if somebody has to send.
    fn push(&self, get: Get) -> bool {
        let mut waiting = self.0.lock();
        waiting.gets.push_back(get);
        !std::mem::replace(&mut waiting.sending, true)
    }

    /// False if there is nothing to send: who comes now has to.
    fn goes_on(&self) -> bool {
        let mut waiting = self.0.lock();
        waiting.gets.retain(|get| !get.tell.is_closed());
        waiting.sending = !waiting.gets.is_empty();
        waiting.sending
    }

    /// Those of the next command.
    fn take(&self) -> Vec<Get> {
        let mut waiting = self.0.lock();
        let count = waiting.gets.len().min(AT_ONCE);
        waiting.gets.drain(..count).collect()
    }
}

impl Server {
    /// The value of a hashed key, if there is one.
    pub(super) async fn get(self: Arc<Self>, key: String) -> Result<Option<RawValue>, Arc<Failure>> {
        let (tell, told) = oneshot::channel();
        let patience = self.timeouts.pool + self.timeouts.connect + self.timeouts.io;
        if self.gets.push(Get { key, tell }) {
            tokio::spawn(self.send_gets());
        }
        match timeout(patience, told).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Failure::talking(AttemptError::Protocol("given up".to_owned()))),
            Err(_) => Err(Failure::getting_a_connection(AttemptError::Timeout)),
        }
    }

    /// Sends what waits, until nothing does.
    async fn send_gets(self: Arc<Self>) {
        let mut sending = Sending { gets: &self.gets, over: false };
        while self.gets.goes_on() {
            // Others come while we wait for our turn.
            let taken = self.checkout().await;
            let gets = self.gets.take();
            let (mut connection, permit) = match taken {
                Ok(taken) => taken,
                Err(failure) => {
                    fail(gets, &failure);
                    continue;
                }
            };
            let answered = timeout(self.timeouts.io, ask(&mut connection, &gets)).await;
            match answered.unwrap_or(Err(AttemptError::Timeout)) {
                Ok(values) => {
                    self.idle.lock().push(connection);
                    drop(permit);
                    share_out(gets, values);
                }
                Err(err) => fail(gets, &Failure::talking(err)),
            }
        }
        sending.over = true;
    }
}

/// The task that sends. Dropped before its time, it leaves the rest to another.
struct Sending<'a> {
    gets: &'a Gets,
    over: bool,
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if !self.over {
            *self.gets.0.lock() = Waiting::default();
        }
    }
}

async fn ask(connection: &mut Connection, gets: &[Get]) -> Result<Vec<(String, RawValue)>, AttemptError> {
    let mut message = "get".to_owned();
    for get in gets {
        message.extend([" ", &get.key]);
    }
    message += "\r\n";
    write(connection, message.as_bytes()).await?;
    read_values(connection).await
}

fn share_out(gets: Vec<Get>, values: Vec<(String, RawValue)>) {
    let values: HashMap<String, RawValue> = values.into_iter().collect();
    for get in gets {
        // Who does not wait any longer is not told.
        let _ = get.tell.send(Ok(values.get(&get.key).cloned()));
    }
}

fn fail(gets: Vec<Get>, failure: &Arc<Failure>) {
    for get in gets {
        let _ = get.tell.send(Err(failure.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fake_server, ring};
    use super::*;
    use futures_util::FutureExt;
    use serde_json::json;
    use tokio::io::AsyncBufReadExt;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn gets_that_come_together_are_one_command() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (cache, ..) = ring(&listener.local_addr().unwrap().to_string(), &[]);
        let keys: Vec<String> = (0..30).map(|n| format!("k{n}")).collect();
        let asking = futures_util::future::join_all(keys.iter().map(|key| cache.try_get(key)));
        let serving = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = Connection::new(stream);
            let mut commands = Vec::new();
            while commands.iter().sum::<usize>() < keys.len() {
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                let asked: Vec<&str> = line.split_whitespace().skip(1).collect();
                let answer: String =
                    asked.iter().map(|key| format!("VALUE {key} 2 34\r\n\"{key}\"\r\n")).collect();
                write(&mut stream, format!("{answer}END\r\n").as_bytes()).await.unwrap();
                commands.push(asked.len());
            }
            commands
        };
        let (answers, commands) = tokio::join!(asking, serving);
        assert_eq!(commands, [24, 6]);
        for (key, answer) in keys.iter().zip(answers) {
            assert_eq!(*answer.unwrap().unwrap(), json!(super::super::hash_key(key)));
        }
    }

    #[tokio::test]
    async fn each_finds_its_own_and_a_bad_value_spoils_no_other() {
        let (address, items) = fake_server().await;
        let (cache, lines, _) = ring(&address, &[]);
        cache.set("a", &json!("b"), 60).await;
        items.lock().insert(super::super::hash_key("bad"), ("2".into(), b"{".to_vec()));
        let asked = ["a", "bad", "none", "a"];
        let answers = futures_util::future::join_all(asked.map(|key| cache.try_get(key))).await;
        let found: Vec<_> = answers.iter().map(|answer| answer.as_ref().ok().cloned().flatten()).collect();
        assert_eq!(found, [Some(json!("b").into()), None, None, Some(json!("b").into())]);
        assert!(answers[1].is_err() && answers[2].is_ok());
        assert!(lines.contains("with key_prefix bad, method get"));
    }

    #[tokio::test]
    async fn who_asks_of_a_server_that_hangs_up_is_told_and_the_next_gets_are_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (cache, lines, _) = ring(&listener.local_addr().unwrap().to_string(), &[]);
        let asking = async {
            let both = tokio::join!(cache.try_get("a"), cache.try_get("b"));
            assert!(both.0.is_err() && both.1.is_err());
            cache.try_get("c").await.unwrap()
        };
        let serving = async {
            let hung_up = listener.accept().await.unwrap();
            drop(hung_up);
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = Connection::new(stream);
            stream.read_line(&mut String::new()).await.unwrap();
            write(&mut stream, b"END\r\n").await.unwrap();
        };
        let (answer, ()) = tokio::join!(asking, serving);
        assert_eq!(answer, None);
        assert_eq!(
            lines.all().iter().filter(|(_, line)| line.contains("Error talking to memcached")).count(),
            2
        );
    }

    #[tokio::test]
    async fn who_goes_away_holds_nobody_up() {
        let (address, _) = fake_server().await;
        let (cache, ..) = ring(&address, &[]);
        assert!(cache.try_get("gone").now_or_never().is_none());
        cache.set("here", &json!(1), 60).await;
        assert_eq!(cache.get("here").await, Some(json!(1).into()));
    }
}

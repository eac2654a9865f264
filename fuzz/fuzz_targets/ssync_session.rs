//! Any bytes as what a sender says in the updates of an SSYNC conversation (subrequests, their headers and bodies): the
//! receiver comes to an end, and says that it has all only after it has.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use obj::ssync::session::{FailureLimits, Refusal, Session};
use service::http::{Body, Response, app_fn};
use service::logs::Logger;

fn session() -> Session {
    Session {
        device: "sda1".into(),
        partition: 9,
        policy_index: 0,
        frag_index: None,
        remote_addr: "127.0.0.1".into(),
        app: app_fn(|mut req| async move {
            match req.body.collect(1 << 20).await {
                Ok(_) => Response::new(201),
                Err(_) => Response::error(499),
            }
        }),
        check: Arc::new(|offers| {
            Box::pin(async move { Ok(offers.iter().map(|_| Default::default()).collect()) })
        }),
        limits: FailureLimits { threshold: 2, ratio: 1.5 },
        logger: Logger::memory().0,
    }
}

fuzz_target!(|data: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (said, whole) = runtime.block_on(async {
        let start: &[u8] = b":MISSING_CHECK: START\r\n:MISSING_CHECK: END\r\n:UPDATES: START\r\n";
        let (body, locks) = (Body::from([start, data].concat()), async { Ok::<_, Refusal>(((), ())) });
        let (session, timeout) = (session(), Duration::from_secs(60));
        let mut reply = Body::driven(move |tx| session.run(body, 4096, timeout, locks, tx));
        let mut said = Vec::new();
        loop {
            match reply.next().await {
                Some(Ok(piece)) => said.extend_from_slice(&piece),
                Some(Err(_)) => return (said, false),
                None => return (said, true),
            }
        }
    });
    assert_eq!(whole, said.ends_with(b":UPDATES: START\r\n:UPDATES: END\r\n"));
});

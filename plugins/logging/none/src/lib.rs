//! The `none` log driver: a container's output is kept nowhere, and clients that are attached still
//! see it.

use std::sync::Arc;

use async_trait::async_trait;
use gantry_sdk::kinds::logs::{Log, LogDriver, LogSink, LogStream, LogTarget, ReadLogs};
use gantry_sdk::registry::Kind as _;
use gantry_sdk::{
    Context, Ctx, Descriptor, Error, Init, Labels, Phase, Plugin, Provide, Registration, Result,
};

static DESCRIPTOR: Descriptor = Descriptor {
    provides: &[Provide::new(Log::NAME, "none")],
    ..Descriptor::new("log.none", Phase::Log)
};

inventory::submit! { Registration::new(&DESCRIPTOR, || Box::new(NonePlugin)) }

struct NonePlugin;

#[async_trait]
impl Plugin for NonePlugin {
    async fn init(&self, cx: &mut Context) -> Result<Init> {
        cx.provide::<Log>("none", Arc::new(NoLog))?;
        Ok(Init::Ready)
    }
}

/// The driver.
#[derive(Clone, Copy, Debug)]
pub struct NoLog;

#[async_trait]
impl LogDriver for NoLog {
    /// Anything goes, as in the reference engine: a daemon-wide `log-opts` meant for another driver
    /// must not keep a container from being created with this one.
    async fn validate(&self, _: &Ctx, _: &Labels) -> Result<()> {
        Ok(())
    }

    async fn open(&self, _: &Ctx, _: &LogTarget) -> Result<LogSink> {
        Ok(LogSink::None)
    }

    async fn read(&self, _: &Ctx, _: &LogTarget, _: ReadLogs) -> Result<LogStream> {
        Err(Error::unsupported("configured logging driver does not support reading"))
    }

    async fn remove(&self, _: &Ctx, _: &LogTarget) -> Result<()> {
        Ok(())
    }

    async fn path(&self, _: &Ctx, _: &LogTarget) -> Result<String> {
        Ok(String::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_sdk::ErrorKind;

    #[tokio::test]
    async fn keeps_nothing_and_says_so() {
        let (cx, target) = (Ctx::background(), LogTarget::default());
        let any = Labels::from([("max-size".to_owned(), "x".to_owned())]);
        NoLog.validate(&cx, &any).await.unwrap();
        assert_eq!(NoLog.open(&cx, &target).await.unwrap(), LogSink::None);
        let wanted = ReadLogs {
            since: None,
            until: None,
            tail: None,
            follow: None,
            stdout: true,
            stderr: true,
        };
        let error = NoLog.read(&cx, &target, wanted).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(NoLog.path(&cx, &target).await.unwrap(), "");
    }
}

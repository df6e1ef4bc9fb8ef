//! Restart policies: whether a container that ended is started again, and when.

use std::time::Duration;

use gantry_sdk::api::container::RestartPolicy;

use crate::record::Record;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A container that ran this long has recovered: the next delay is the first again.
const RECOVERED_AFTER: Duration = Duration::from_secs(10);

/// The delay before the next restart; it doubles each time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff(Option<Duration>);

impl Backoff {
    fn next(&mut self, ran: Duration) -> Duration {
        let delay = match self.0 {
            Some(last) if ran < RECOVERED_AFTER => (last * 2).min(LONGEST_DELAY),
            _ => FIRST_DELAY,
        };
        self.0 = Some(delay);
        delay
    }
}

/// When a container that ended on its own is started again; none for not at all.
pub fn delay(
    policy: &RestartPolicy,
    code: i32,
    restarts: u32,
    ran: Duration,
    backoff: &mut Backoff,
) -> Option<Duration> {
    let again = match policy.name.as_str() {
        "always" | "unless-stopped" => true,
        "on-failure" => {
            let most = policy.maximum_retry_count;
            code != 0 && (most == 0 || i64::from(restarts) < most)
        }
        _ => false,
    };
    again.then(|| backoff.next(ran))
}

/// Whether a container that does not run is started when the daemon starts.
pub fn at_boot(record: &Record) -> bool {
    let life = &record.life;
    match record.host.restart_policy.name.as_str() {
        "always" => life.started.is_some(),
        "unless-stopped" => life.started.is_some() && !life.stopped_by_hand,
        "on-failure" => {
            let most = record.host.restart_policy.maximum_retry_count;
            life.active
                && !life.stopped_by_hand
                && life.exit.as_ref().is_some_and(|exit| exit.code != 0)
                && (most == 0 || i64::from(life.restarts) < most)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, maximum_retry_count: i64) -> RestartPolicy {
        RestartPolicy { name: name.into(), maximum_retry_count }
    }

    #[test]
    fn policies_decide() {
        let cases = [
            ("always", 0, 0, 9, true),
            ("no", 0, 1, 0, false),
            ("on-failure", 0, 0, 0, false),
            ("on-failure", 0, 1, 100, true),
            ("on-failure", 2, 1, 2, false),
            ("unless-stopped", 0, 0, 0, true),
        ];
        for (name, most, code, restarts, again) in cases {
            let mut backoff = Backoff::default();
            let delay = delay(&policy(name, most), code, restarts, Duration::ZERO, &mut backoff);
            assert_eq!(delay.is_some(), again, "{name} {most} {code} {restarts}");
        }
    }

    #[test]
    fn delays_double_until_the_container_has_recovered() {
        let mut backoff = Backoff::default();
        let ms = |d: Duration| d.as_millis();
        assert_eq!(ms(backoff.next(Duration::ZERO)), 100);
        assert_eq!(ms(backoff.next(Duration::ZERO)), 200);
        assert_eq!(ms(backoff.next(Duration::from_secs(11))), 100);
        for _ in 0..20 {
            backoff.next(Duration::ZERO);
        }
        assert_eq!(backoff.next(Duration::ZERO), LONGEST_DELAY);
    }
}

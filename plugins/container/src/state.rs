//! The life cycle of a container as a pure machine.
//!
//! ```text
//! Created ──start──▶ Running ──exit──▶ Exited ──start──▶ Running
//!                       ▲                │
//!                       │         restart policy
//!                       └── Restarting ◀─┘
//! Created, Exited, Dead ──remove──▶ Removing ──cannot clean up──▶ Dead
//! ```
//!
//! Commands may be refused ([`State::decide`]); facts have happened ([`State::after`]).

use std::time::SystemTime;

use gantry_sdk::kinds::runtime::Exit;

/// Where a container is in its life, with the data that belongs there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Made, never started.
    Created,
    /// Its first process exists.
    Running {
        /// Process number on the host.
        pid: i32,
        /// Since when.
        since: SystemTime,
    },
    /// Ended; its restart policy starts it again soon.
    Restarting {
        /// How it ended.
        exit: Exit,
    },
    /// Ended, or could not be started.
    Exited {
        /// How it ended.
        exit: Exit,
    },
    /// Being removed.
    Removing,
    /// Removal failed; only removal can be tried again.
    Dead,
}

/// What a client asks for. May be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Start the first process.
    Start,
    /// End it, by signal and then by force.
    Stop,
    /// Send a signal.
    Kill,
    /// Remove the container, ending it first if `force`.
    Remove {
        /// Whether a running container is ended.
        force: bool,
    },
}

/// What the system reported. Never refused.
#[derive(Clone, Debug)]
pub enum Fact {
    /// The first process exists.
    Started {
        /// Process number on the host.
        pid: i32,
        /// When.
        at: SystemTime,
    },
    /// The first process ended, or could not be made.
    Exited {
        /// How.
        exit: Exit,
        /// Whether the restart policy will start it again.
        again: bool,
    },
    /// The restart policy was called off.
    RestartCancelled,
    /// Removal began.
    RemovalBegan,
    /// Removal could not be completed.
    RemovalFailed,
}

/// What carries out an accepted command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Launch the first process.
    Launch,
    /// Send the stop signal and wait.
    Terminate,
    /// Call the pending restart off.
    CancelRestart,
    /// Send a signal.
    Signal,
    /// End the process, then clean up.
    KillAndCleanUp,
    /// Clean up.
    CleanUp,
}

/// Why a command is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 304.
    AlreadyRunning,
    /// 304.
    AlreadyStopped,
    /// 409.
    NotRunning,
    /// 409.
    BeingRemoved,
    /// 409.
    IsDead,
    /// 409: removing a running container takes force.
    RunningWithoutForce,
}

impl State {
    /// Whether `command` makes sense now, and what carries it out.
    ///
    /// No `_` arm: a new state or command does not compile until every pair has an answer.
    pub fn decide(&self, command: Command) -> Result<Action, Refusal> {
        match command {
            Command::Start => match self {
                Self::Created | Self::Exited { .. } => Ok(Action::Launch),
                Self::Running { .. } => Err(Refusal::AlreadyRunning),
                Self::Restarting { .. } => Ok(Action::Launch),
                Self::Removing => Err(Refusal::BeingRemoved),
                Self::Dead => Err(Refusal::IsDead),
            },
            Command::Stop => match self {
                Self::Running { .. } => Ok(Action::Terminate),
                Self::Restarting { .. } => Ok(Action::CancelRestart),
                Self::Created | Self::Exited { .. } | Self::Removing | Self::Dead => {
                    Err(Refusal::AlreadyStopped)
                }
            },
            Command::Kill => match self {
                Self::Running { .. } => Ok(Action::Signal),
                Self::Restarting { .. } => Ok(Action::CancelRestart),
                Self::Created | Self::Exited { .. } | Self::Removing | Self::Dead => {
                    Err(Refusal::NotRunning)
                }
            },
            Command::Remove { force } => match self {
                Self::Created | Self::Exited { .. } | Self::Dead => Ok(Action::CleanUp),
                Self::Running { .. } | Self::Restarting { .. } if force => {
                    Ok(Action::KillAndCleanUp)
                }
                Self::Running { .. } | Self::Restarting { .. } => Err(Refusal::RunningWithoutForce),
                Self::Removing => Err(Refusal::BeingRemoved),
            },
        }
    }

    /// The state after `fact`.
    #[must_use]
    pub fn after(self, fact: Fact) -> Self {
        match (self, fact) {
            (Self::Removing, Fact::RemovalFailed) => Self::Dead,
            (Self::Removing, _) | (_, Fact::RemovalBegan) => Self::Removing,
            (_, Fact::Started { pid, at }) => Self::Running { pid, since: at },
            (_, Fact::Exited { exit, again: true }) => Self::Restarting { exit },
            (_, Fact::Exited { exit, again: false }) => Self::Exited { exit },
            (Self::Restarting { exit }, Fact::RestartCancelled) => Self::Exited { exit },
            (same, Fact::RestartCancelled | Fact::RemovalFailed) => same,
        }
    }

    /// Whether the first process exists.
    pub const fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    /// The process number, while there is one.
    pub const fn pid(&self) -> Option<i32> {
        match self {
            Self::Running { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    /// The word that clients see.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::Restarting { .. } => "restarting",
            Self::Exited { .. } => "exited",
            Self::Removing => "removing",
            Self::Dead => "dead",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exit() -> Exit {
        Exit { code: 0, oom: false, at: SystemTime::UNIX_EPOCH }
    }

    /// A world with at most one process, which obeys accepted commands.
    #[derive(Default)]
    struct World {
        alive: bool,
        removing: bool,
        facts: Vec<Fact>,
    }

    impl World {
        fn carry_out(&mut self, action: Action) {
            match action {
                Action::Launch => {
                    self.alive = true;
                    self.facts.push(Fact::Started { pid: 7, at: SystemTime::UNIX_EPOCH });
                }
                Action::Terminate => self.end(false),
                Action::CancelRestart => self.facts.push(Fact::RestartCancelled),
                Action::Signal => {}
                Action::KillAndCleanUp => {
                    self.end(false);
                    self.begin_removal();
                }
                Action::CleanUp => self.begin_removal(),
            }
        }

        fn end(&mut self, again: bool) {
            if std::mem::take(&mut self.alive) {
                self.facts.push(Fact::Exited { exit: exit(), again });
            }
        }

        fn begin_removal(&mut self) {
            self.removing = true;
            self.facts.push(Fact::RemovalBegan);
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Ask(Command),
        Ends { again: bool },
        RemovalFails,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Ask(Command::Start)),
            Just(Step::Ask(Command::Stop)),
            Just(Step::Ask(Command::Kill)),
            any::<bool>().prop_map(|force| Step::Ask(Command::Remove { force })),
            any::<bool>().prop_map(|again| Step::Ends { again }),
            Just(Step::RemovalFails),
        ]
    }

    proptest! {
        /// Whatever clients ask and the system reports, in any order: a pid is known exactly while a
        /// process exists, and after removal began nothing but removal is possible.
        #[test]
        fn life_cycle_holds(steps in prop::collection::vec(any_step(), 0..64)) {
            let mut world = World::default();
            let mut state = State::Created;
            for step in steps {
                match step {
                    Step::Ask(command) => {
                        if let Ok(action) = state.decide(command) {
                            world.carry_out(action);
                        }
                    }
                    Step::Ends { again } => world.end(again),
                    Step::RemovalFails => world.facts.push(Fact::RemovalFailed),
                }
                for fact in std::mem::take(&mut world.facts) {
                    state = state.after(fact);
                }
                prop_assert_eq!(state.pid().is_some(), world.alive);
                prop_assert!(!world.removing || matches!(state, State::Removing | State::Dead));
            }
        }
    }

    #[test]
    fn refusals() {
        let running = State::Running { pid: 1, since: SystemTime::UNIX_EPOCH };
        let cases = [
            (&State::Created, Command::Stop, Refusal::AlreadyStopped),
            (&State::Created, Command::Kill, Refusal::NotRunning),
            (&running, Command::Start, Refusal::AlreadyRunning),
            (&running, Command::Remove { force: false }, Refusal::RunningWithoutForce),
            (&State::Dead, Command::Start, Refusal::IsDead),
            (&State::Removing, Command::Remove { force: true }, Refusal::BeingRemoved),
        ];
        for (state, command, refusal) in cases {
            assert_eq!(state.decide(command), Err(refusal), "{state:?} {command:?}");
        }
    }
}

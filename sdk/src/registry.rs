//! The registry of backends, typed by kind and keyed by instance name.
//!
//! What it hands out is always guarded ([`crate::guard`]); a plugin never holds another plugin's
//! bare object.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::guard::{Guard, GuardStats};
use crate::mounts::Grants;
use crate::{Error, Result};

/// An extension point: the trait behind it, its name and how its calls are guarded.
///
/// Implemented by the [`kind!`](crate::kind) macro.
pub trait Kind: 'static {
    /// The trait that providers implement.
    type Dyn: ?Sized + Send + Sync + 'static;
    /// As written in descriptors, errors and metrics.
    const NAME: &'static str;
    /// Interface version: a plugin built for `major.x` keeps working for every daemon with `major`.
    const VERSION: (u16, u16);
    /// What bounds a call whose context has no nearer deadline.
    const BUDGET: Option<Duration>;

    /// Puts the guard around a provider.
    fn guard(inner: Arc<Self::Dyn>, guard: Arc<Guard>) -> Arc<Self::Dyn>;
}

/// Whether a slot can be used.
enum Slot {
    Ready { object: Box<dyn Any + Send + Sync>, guard: Arc<Guard>, grants: Arc<Grants> },
    Down { why: String },
}

type Slots = BTreeMap<(&'static str, String), Slot>;

/// Backends by kind and instance. The kernel owns it; plugins read it through their context.
#[derive(Default)]
pub struct Registry {
    slots: RwLock<Slots>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.read().keys()).finish()
    }
}

impl Registry {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Slots> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Slots> {
        self.slots.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `object` available as `instance` of kind `K`; `grants` is what its mount plans may use.
    ///
    /// `remote` backends (out of process) get a circuit breaker.
    ///
    /// # Errors
    ///
    /// `Exists` if that slot is already filled.
    pub fn provide<K: Kind>(
        &self,
        instance: &str,
        object: Arc<K::Dyn>,
        grants: Grants,
        remote: bool,
    ) -> Result<()> {
        let mut slots = self.write();
        let key = (K::NAME, instance.to_owned());
        if matches!(slots.get(&key), Some(Slot::Ready { .. })) {
            return Err(Error::exists(format!("{} {instance} is provided twice", K::NAME)));
        }
        let guard = Guard::new(format!("{} {instance}", K::NAME), K::BUDGET, remote);
        let object: Arc<K::Dyn> = K::guard(object, guard.clone());
        slots
            .insert(key, Slot::Ready { object: Box::new(object), guard, grants: Arc::new(grants) });
        Ok(())
    }

    /// Marks an instance as known but unusable, so that errors can say why.
    pub fn mark_down(&self, kind: &'static str, instance: &str, why: impl Into<String>) {
        self.write().insert((kind, instance.to_owned()), Slot::Down { why: why.into() });
    }

    /// Forgets an instance, for what may leave while the daemon runs. Calls under way go on.
    pub fn withdraw(&self, kind: &'static str, instance: &str) {
        self.write().remove(&(kind, instance.to_owned()));
    }

    /// The backend `instance` of kind `K`.
    ///
    /// # Errors
    ///
    /// `NotFound` if nobody provides it, `Unavailable` with the reason if it is down.
    pub fn get<K: Kind>(&self, instance: &str) -> Result<Arc<K::Dyn>> {
        match self.read().get(&(K::NAME, instance.to_owned())) {
            Some(Slot::Ready { object, .. }) => downcast::<K>(object.as_ref()),
            Some(Slot::Down { why, .. }) => {
                Err(Error::unavailable(format!("{} {instance} is not available: {why}", K::NAME)))
            }
            None => Err(Error::not_found(format!("no {} named {instance}", K::NAME))),
        }
    }

    /// The only backend of kind `K`, for kinds that have one provider.
    ///
    /// # Errors
    ///
    /// `Unavailable` if there is none that is ready.
    pub fn only<K: Kind>(&self) -> Result<Arc<K::Dyn>> {
        self.all::<K>()
            .into_iter()
            .next()
            .map(|(_, object)| object)
            .ok_or_else(|| Error::unavailable(format!("no {} is available", K::NAME)))
    }

    /// All ready backends of kind `K`, by instance name.
    pub fn all<K: Kind>(&self) -> Vec<(String, Arc<K::Dyn>)> {
        self.read()
            .iter()
            .filter(|((kind, _), _)| *kind == K::NAME)
            .filter_map(|((_, name), slot)| match slot {
                Slot::Ready { object, .. } => {
                    Some((name.clone(), downcast::<K>(object.as_ref()).ok()?))
                }
                Slot::Down { .. } => None,
            })
            .collect()
    }

    /// What the mount plans of `instance` may use; nothing if it is not ready.
    pub fn grants<K: Kind>(&self, instance: &str) -> Arc<Grants> {
        match self.read().get(&(K::NAME, instance.to_owned())) {
            Some(Slot::Ready { grants, .. }) => grants.clone(),
            _ => Arc::default(),
        }
    }

    /// What the guards have seen, by kind and instance.
    pub fn stats(&self) -> Vec<GuardStats> {
        self.read()
            .values()
            .filter_map(|slot| match slot {
                Slot::Ready { guard, .. } => Some(guard.stats()),
                Slot::Down { .. } => None,
            })
            .collect()
    }

    /// Every slot: kind, instance, and why it is down if it is.
    pub fn slots(&self) -> Vec<(&'static str, String, Option<String>)> {
        self.read()
            .iter()
            .map(|((kind, name), slot)| {
                let why = match slot {
                    Slot::Ready { .. } => None,
                    Slot::Down { why } => Some(why.clone()),
                };
                (*kind, name.clone(), why)
            })
            .collect()
    }
}

fn downcast<K: Kind>(object: &(dyn Any + Send + Sync)) -> Result<Arc<K::Dyn>> {
    object
        .downcast_ref::<Arc<K::Dyn>>()
        .cloned()
        .ok_or_else(|| Error::new(crate::ErrorKind::Internal, format!("{} has two types", K::NAME)))
}

/// Defines an extension point: the trait, its [`Kind`] marker and the guard around providers.
///
/// ```
/// # use gantry_sdk::{kind, context::Ctx, Result};
/// kind! {
///     /// Says hello.
///     pub trait Greeter: Greeting = "greeter" (1, 0), budget Some(std::time::Duration::from_secs(1)) => {
///         /// A greeting for `name`.
///         async fn greet(&self, cx: &Ctx, name: &str) -> Result<String>;
///     }
/// }
/// ```
///
/// Methods are `async fn(&self, cx: &Ctx, …) -> Result<T>`, then, in a `plain { … }` block, methods
/// that only read (`fn(&self) -> T`); those are not guarded.
#[macro_export]
macro_rules! kind {
    (
        $(#[$doc:meta])*
        pub trait $dyn:ident: $kind:ident = $name:literal ($major:literal, $minor:literal), budget $budget:expr =>
        {
            $(
                $(#[$mdoc:meta])*
                async fn $method:ident(&self, $cx:ident: &Ctx $(, $arg:ident: $ty:ty)* $(,)?) -> Result<$ret:ty>;
            )*
            $(plain {
                $(
                    $(#[$pdoc:meta])*
                    fn $pmethod:ident(&self) -> $pret:ty;
                )*
            })?
        }
    ) => {
        $(#[$doc])*
        #[::async_trait::async_trait]
        pub trait $dyn: Send + Sync + 'static {
            $(
                $(#[$mdoc])*
                async fn $method(&self, $cx: &$crate::context::Ctx $(, $arg: $ty)*) -> $crate::Result<$ret>;
            )*
            $($(
                $(#[$pdoc])*
                fn $pmethod(&self) -> $pret;
            )*)?
        }

        #[doc = concat!("The kind `", $name, "`; see [`", stringify!($dyn), "`].")]
        #[derive(Debug)]
        pub enum $kind {}

        const _: () = {
            struct Guarded {
                inner: ::std::sync::Arc<dyn $dyn>,
                guard: ::std::sync::Arc<$crate::guard::Guard>,
            }

            #[::async_trait::async_trait]
            impl $dyn for Guarded {
                $(
                    async fn $method(&self, $cx: &$crate::context::Ctx $(, $arg: $ty)*) -> $crate::Result<$ret> {
                        self.guard.call(stringify!($method), $cx, self.inner.$method($cx $(, $arg)*)).await
                    }
                )*
                $($(
                    fn $pmethod(&self) -> $pret {
                        self.inner.$pmethod()
                    }
                )*)?
            }

            impl $crate::registry::Kind for $kind {
                type Dyn = dyn $dyn;
                const NAME: &'static str = $name;
                const VERSION: (u16, u16) = ($major, $minor);
                const BUDGET: ::std::option::Option<::std::time::Duration> = $budget;

                fn guard(
                    inner: ::std::sync::Arc<Self::Dyn>,
                    guard: ::std::sync::Arc<$crate::guard::Guard>,
                ) -> ::std::sync::Arc<Self::Dyn> {
                    ::std::sync::Arc::new(Guarded { inner, guard })
                }
            }
        };
    };
}

#[cfg(test)]
#[expect(unreachable_pub, reason = "the macro makes public traits")]
mod tests {
    use super::*;
    use crate::context::Ctx;

    kind! {
        /// For the test.
        pub trait Greeter: Greeting = "greeter" (1, 0), budget None => {
            /// A greeting.
            async fn greet(&self, cx: &Ctx, name: &str) -> Result<String>;
            plain {
                /// Its language.
                fn language(&self) -> &'static str;
            }
        }
    }

    struct English;

    #[async_trait::async_trait]
    impl Greeter for English {
        async fn greet(&self, _: &Ctx, name: &str) -> Result<String> {
            Ok(format!("hello {name}"))
        }

        fn language(&self) -> &'static str {
            "en"
        }
    }

    #[tokio::test]
    async fn a_backend_is_found_by_kind_and_instance() {
        let registry = Registry::default();
        registry.provide::<Greeting>("en", Arc::new(English), Grants::default(), false).unwrap();
        registry.mark_down("greeter", "fr", "no dictionary");
        let greeter = registry.get::<Greeting>("en").unwrap();
        assert_eq!(greeter.greet(&Ctx::background(), "you").await.unwrap(), "hello you");
        assert_eq!(greeter.language(), "en");
        assert_eq!(registry.stats()[0].calls, 1);
        let down = registry.get::<Greeting>("fr").map(|_| ()).unwrap_err();
        assert!(down.to_string().contains("no dictionary"));
        let none = registry.get::<Greeting>("de").map(|_| ()).unwrap_err();
        assert_eq!(none.to_string(), "no greeter named de");

        // One that comes and goes.
        registry.provide::<Greeting>("fr", Arc::new(English), Grants::default(), true).unwrap();
        assert!(registry.get::<Greeting>("fr").is_ok(), "what was down may become ready");
        registry.withdraw("greeter", "fr");
        let gone = registry.get::<Greeting>("fr").map(|_| ()).unwrap_err();
        assert_eq!(gone.kind(), crate::ErrorKind::NotFound);
    }
}

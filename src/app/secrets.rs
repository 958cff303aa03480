//! The CHAP secrets of clients, and the random numbers of logins.
//!
//! Secrets are made when a client's machine first fetches its script, are durable before they are handed out, and are
//! forgotten when the client gets a new machine. Not here: who may be told them (`boots`), and CHAP itself (`iscsi::chap`).

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::rand::{GetRandomFlags, getrandom};
use serde::{Deserialize, Serialize};

use crate::fleet::iqn::Naming;
use crate::fleet::secrets::SECRET_LENGTH;
use crate::fleet::{Client, ClientName, Secrets};
use crate::iscsi::chap::{Credentials, Nonce};
use crate::store::{Record, WriteError, Writer};

/// What the server calls itself in CHAP.
pub use crate::script::CHAP_SERVER;

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The system has no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(#[from] io::Error),
    /// It could not be stored.
    #[error("it could not be stored: {0}")]
    Store(#[from] WriteError),
    /// The client's disk opens without.
    #[error("{client} asks for no CHAP, and has no secret")]
    NoChap {
        /// Its name.
        client: ClientName,
    },
}

impl SecretError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::NoChap { .. } => {
                Some("`chap = true` in roost.toml, on the client, its group or the defaults, asks for it")
            }
            Self::Random(_) | Self::Store(_) => None,
        }
    }
}

/// What an initiator needs to log in to a client's target where CHAP is asked for: the words of the client's boot script.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretReport {
    /// The client.
    pub client: String,
    /// Its target's name.
    pub target: String,
    /// What the initiator calls itself in CHAP.
    pub user: String,
    /// What it proves to know.
    pub secret: String,
    /// What the server calls itself, where the initiator asks it for a proof.
    pub server_user: String,
    /// What the server proves to know.
    pub server_secret: String,
}

impl fmt::Debug for SecretReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretReport(..)")
    }
}

/// The secrets of all clients.
#[derive(Debug, Default)]
pub struct SecretBook {
    known: Mutex<HashMap<ClientName, Secrets>>,
    /// `None` in tests: nothing is stored.
    writer: Option<Writer>,
    /// One secret is made at a time.
    turn: tokio::sync::Mutex<()>,
}

impl SecretBook {
    /// The secrets that the store has.
    #[must_use]
    pub fn new(writer: Writer, known: impl IntoIterator<Item = (ClientName, Secrets)>) -> Self {
        let known = Mutex::new(known.into_iter().collect());
        Self { known, writer: Some(writer), turn: tokio::sync::Mutex::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ClientName, Secrets>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What both ends of this client's target know, where a secret was made.
    #[must_use]
    pub fn credentials(&self, client: &ClientName) -> Option<Credentials> {
        let Secrets { machine, server } = self.known().get(client)?.clone();
        let (user, target_user) = (client.to_string(), CHAP_SERVER.to_owned());
        Some(Credentials { user, secret: machine, target_user, target_secret: server })
    }

    /// The secrets of this client, made where there are none.
    ///
    /// # Errors
    /// None could be made.
    pub async fn of(&self, client: &ClientName) -> Result<Secrets, SecretError> {
        let _only = self.turn.lock().await;
        if let Some(secrets) = self.known().get(client) {
            return Ok(secrets.clone());
        }
        let secrets = loop {
            if let Some(secrets) = Secrets::from_random(&random::<{ 2 * SECRET_LENGTH }>()?) {
                break secrets;
            }
        };
        if let Some(writer) = &self.writer {
            writer.commit(vec![Record::Secrets(client.clone(), secrets.clone())]).await?;
        }
        self.known().insert(client.clone(), secrets.clone());
        Ok(secrets)
    }

    /// The secrets of this client for an operator, made where there are none.
    ///
    /// # Errors
    /// It has none, or none could be made.
    pub async fn report(&self, client: &Client, naming: &Naming) -> Result<SecretReport, SecretError> {
        if !client.chap {
            return Err(SecretError::NoChap { client: client.name.clone() });
        }
        let Secrets { machine, server } = self.of(&client.name).await?;
        Ok(SecretReport {
            client: client.name.to_string(),
            target: naming.target(&client.name),
            user: client.name.to_string(),
            secret: machine,
            server_user: CHAP_SERVER.to_owned(),
            server_secret: server,
        })
    }

    /// Forgets the secrets of a client whose machine was replaced: the next one gets others.
    pub async fn forget(&self, client: &ClientName) {
        let _only = self.turn.lock().await;
        self.known().remove(client);
        if let Some(writer) = &self.writer
            && let Err(error) = writer.commit(vec![Record::SecretsGone(client.clone())]).await
        {
            tracing::error!(
                "{client}: its old CHAP secret is void until the next start, and then valid again: {error}"
            );
        }
    }
}

/// Random numbers for one login.
///
/// # Errors
/// The system has none.
pub fn nonce() -> io::Result<Nonce> {
    let [identifier] = random()?;
    Ok(Nonce { identifier, challenge: random()? })
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled += match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Err(rustix::io::Errno::INTR) => 0,
            got => got?,
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn a_secret_is_made_once_outlives_a_restart_and_is_another_after_a_replacement() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::open(state.path()).unwrap();
        let writer = Writer::start(store.clone());
        let (one, two): (ClientName, ClientName) = ("pc-01".parse().unwrap(), "pc-02".parse().unwrap());
        let book = SecretBook::new(writer.clone(), []);
        assert_eq!(book.credentials(&one), None);
        let first = book.of(&one).await.unwrap();
        assert_eq!(book.of(&one).await.unwrap(), first);
        assert_ne!(book.of(&two).await.unwrap(), first);
        assert_eq!(book.credentials(&one).unwrap().secret, first.machine);

        let book = SecretBook::new(writer.clone(), store.secrets().unwrap());
        assert_eq!(book.of(&one).await.unwrap(), first);
        book.forget(&one).await;
        assert_eq!(book.credentials(&one), None);
        let book = SecretBook::new(writer, store.secrets().unwrap());
        assert_eq!(book.credentials(&one), None);
        assert_ne!(book.of(&one).await.unwrap(), first);
        assert!(book.credentials(&two).is_some());
    }

    #[test]
    fn no_two_logins_are_challenged_alike() {
        let nonces = [(); 8].map(|()| nonce().unwrap().challenge);
        assert!((1..8).all(|n| !nonces[..n].contains(&nonces[n])));
    }
}

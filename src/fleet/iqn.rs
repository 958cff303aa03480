//! iSCSI names of clients (RFC 7143 §4.2.7): `PREFIX:NAME` is a client's target, `PREFIX:client.NAME` its initiator.

use super::client::ClientName;

/// What `[server] iqn` is when left out.
pub const DEFAULT_PREFIX: &str = "iqn.2026-11.internal.roost";

/// Longest iSCSI name in bytes (RFC 7143 §4.2.7.1).
pub const MAX_ISCSI_NAME: usize = 223;

/// Derives iSCSI names from client names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naming {
    prefix: String,
}

impl Naming {
    /// Names under this prefix, which `config` has checked to be an `iqn.` name.
    #[must_use]
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// The target that serves this client's disk.
    #[must_use]
    pub fn target(&self, client: &ClientName) -> String {
        format!("{}:{client}", self.prefix)
    }

    /// The initiator name that this client's machine presents.
    #[must_use]
    pub fn initiator(&self, client: &ClientName) -> String {
        format!("{}:client.{client}", self.prefix)
    }

    /// The client whose target this is. iSCSI names are compared without regard to case: they are normalised to lower
    /// case before use (RFC 3722), and some initiators leave that to the target.
    #[must_use]
    pub fn client_of_target(&self, target: &str) -> Option<ClientName> {
        let target = target.to_ascii_lowercase();
        target.strip_prefix(&self.prefix)?.strip_prefix(':')?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_name_leads_back_to_its_client() {
        let naming = Naming::new(DEFAULT_PREFIX);
        let client: ClientName = "pc-01".parse().unwrap();
        assert_eq!(naming.target(&client), "iqn.2026-11.internal.roost:pc-01");
        assert_eq!(naming.initiator(&client), "iqn.2026-11.internal.roost:client.pc-01");
        assert_eq!(naming.client_of_target("IQN.2026-11.internal.roost:PC-01"), Some(client));
        for stranger in ["iqn.2026-11.internal.roost", "iqn.2026-11.internal.roost:", "iqn.2026-11.other:pc-01"] {
            assert_eq!(naming.client_of_target(stranger), None, "{stranger}");
        }
    }
}

//! What a client's machine and this server prove to each other by CHAP.

use std::fmt;

/// Characters of a secret: each is six random bits, so 96 bits in all, which is what RFC 7143 §9.2.1 asks for. Windows takes
/// 12 to 16 characters and no more.
pub const SECRET_LENGTH: usize = 16;

/// Characters that iPXE, open-iscsi and Windows all take, in any place.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._";

/// Two secrets of one client, made by Roost, and shown in its boot script and to an operator who asks.
#[derive(Clone, PartialEq, Eq)]
pub struct Secrets {
    /// What the client's machine proves to know.
    pub machine: String,
    /// What this server proves to know.
    pub server: String,
}

impl Secrets {
    /// Secrets out of random bytes; `None` if the two came out equal, which they must not be: what the server answers
    /// would let a stranger in.
    #[must_use]
    pub fn from_random(bytes: &[u8; 2 * SECRET_LENGTH]) -> Option<Self> {
        let text = |bytes: &[u8]| bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 0x3F)])).collect();
        let (machine, server) = bytes.split_at(SECRET_LENGTH);
        let secrets = Self { machine: text(machine), server: text(server) };
        (secrets.machine != secrets.server).then_some(secrets)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_words_of_sixteen_and_never_equal() {
        let bytes = std::array::from_fn(|n| u8::try_from(n).unwrap());
        let Secrets { machine, server } = Secrets::from_random(&bytes).unwrap();
        assert_eq!((machine.as_str(), server.as_str()), ("ABCDEFGHIJKLMNOP", "QRSTUVWXYZabcdef"));
        assert!(ALPHABET.iter().all(|c| c.is_ascii_graphic() && !b"$\"'\\&|#=-".contains(c)));
        assert_eq!(Secrets::from_random(&[7; 32]), None);
    }

    #[test]
    fn no_secret_is_ever_printed() {
        let secrets = Secrets { machine: "one".into(), server: "two".into() };
        assert_eq!(format!("{secrets:?}"), "Secrets(..)");
    }
}

//! The head of an HTTP/1.1 request (RFC 9112 §2 to §5), read only so far that it is known who answers.
//!
//! Not a judge of requests: what is not plainly well-formed is `None` here, and hyper's to refuse.

use axum::http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use axum::http::{HeaderName, HeaderValue, Method, Request, Uri, Version};

/// Most fields of a request.
pub(super) const MAX_FIELDS: usize = 64;

/// How many bytes of these the first head takes, with the empty line that ends it; `None`: it has not ended yet.
pub(super) fn end(bytes: &[u8]) -> Option<usize> {
    let start = blank(bytes);
    let mut last = 0;
    for (at, _) in bytes.iter().enumerate().skip(start).filter(|(_, b)| **b == b'\n') {
        if last > 0 && matches!(&bytes[last..at], b"" | b"\r") {
            return Some(at + 1);
        }
        last = at + 1;
    }
    None
}

/// Reads a head that has ended.
pub(super) fn parse(bytes: &[u8]) -> Option<Request<()>> {
    let mut lines = bytes[blank(bytes)..].split(|b| *b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut words = lines.next()?.split(|b| *b == b' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let version = match version {
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/1.0" => Version::HTTP_10,
        _ => return None,
    };
    if words.next().is_some() {
        return None;
    }
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(method).ok()?;
    *request.uri_mut() = Uri::try_from(target).ok()?;
    *request.version_mut() = version;
    let fields = request.headers_mut();
    for line in lines.take_while(|line| !line.is_empty()) {
        let colon = line.iter().position(|b| *b == b':')?;
        let name = HeaderName::from_bytes(&line[..colon]).ok()?;
        fields.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
        if fields.len() > MAX_FIELDS {
            return None;
        }
    }
    Some(request)
}

/// Empty lines before a request are nothing (RFC 9112 §2.2).
fn blank(bytes: &[u8]) -> usize {
    bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len())
}

/// Whether bytes follow this head that are its body and no next request.
pub(super) fn has_body(request: &Request<()>) -> bool {
    let mut lengths = request.headers().get_all(CONTENT_LENGTH).iter();
    request.headers().contains_key(TRANSFER_ENCODING) || lengths.any(|length| length != "0")
}

/// Whether the client would keep the connection for its next request (RFC 9112 §9.3). HTTP/1.0's own way to say so is left
/// to hyper.
pub(super) fn keeps(request: &Request<()>) -> bool {
    let values = request.headers().get_all(CONNECTION).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    request.version() == Version::HTTP_11
        && !values.into_iter().any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_head_ends_at_its_first_empty_line() {
        for (bytes, head) in [
            (&b"GET / HTTP/1.1\r\nHost: x\r\n\r\nmore"[..], Some(27)),
            (b"\r\n\r\nGET / HTTP/1.1\r\n\r\n", Some(22)),
            (b"GET / HTTP/1.1\nHost: x\n\n", Some(24)),
            (b"GET / HTTP/1.1\r\nHost: x\r\n\r", None),
            (b"GET / HTTP/1.1\r\nHost: x\r\n", None),
            (b"\r\n\r\n\r\n", None),
            (b"", None),
        ] {
            assert_eq!(end(bytes), head, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_plain_request_is_read() {
        let request =
            parse(b"HEAD http://10.0.0.1/files/a%20b?x=1 HTTP/1.1\r\nHost: x\r\nRange:  bytes=0-\t\r\n\r\n").unwrap();
        assert_eq!((request.method(), request.uri().path()), (&Method::HEAD, "/files/a%20b"));
        assert_eq!(request.headers()["range"], "bytes=0-");
        assert!(keeps(&request) && !has_body(&request));
    }

    #[test]
    fn what_is_said_of_the_connection_and_of_a_body_is_heard() {
        for (fields, kept, body) in [
            ("", true, false),
            ("Content-Length: 0\r\n", true, false),
            ("Content-Length: 5\r\n", true, true),
            ("Content-Length: 0\r\ncontent-length: 5\r\n", true, true),
            ("Transfer-Encoding: chunked\r\n", true, true),
            ("Connection: TE, Close\r\n", false, false),
            ("Connection: keep-alive\r\n", true, false),
        ] {
            let request = parse(format!("GET / HTTP/1.1\r\n{fields}\r\n").as_bytes()).unwrap();
            assert_eq!((keeps(&request), has_body(&request)), (kept, body), "{fields}");
        }
        assert!(!keeps(&parse(b"GET / HTTP/1.0\r\n\r\n").unwrap()));
    }

    #[test]
    fn what_is_not_plain_is_left_to_hyper() {
        for head in [
            "GET /a b HTTP/1.1",
            "GET / HTTP/2.0",
            "GET /",
            "G\u{7}T / HTTP/1.1",
            "GET / HTTP/1.1\r\nHost : x",
            "GET / HTTP/1.1\r\nA: b\r\n folded",
            "GET / HTTP/1.1\r\nno field",
            "GET / HTTP/1.1\r\nA: \u{1}",
        ] {
            assert!(parse(format!("{head}\r\n\r\n").as_bytes()).is_none(), "{head}");
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_FIELDS + 1));
        assert!(parse(many.as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn a_head_in_pieces_ends_where_the_whole_does(
            bytes in prop::collection::vec(prop::sample::select(&b"\r\n\r\nGx: "[..]), 0..40),
        ) {
            let whole = end(&bytes);
            for piece in 0..=bytes.len() {
                let expected = whole.filter(|end| *end <= piece);
                prop_assert_eq!(end(&bytes[..piece]), expected);
            }
            if let Some(end) = whole {
                let _ = parse(&bytes[..end]);
            }
        }
    }
}

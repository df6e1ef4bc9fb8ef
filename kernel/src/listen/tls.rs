//! TLS for TCP listeners.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::{ServerConfig, WebPkiClientVerifier};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::typed::TlsConfig;

/// Why TLS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("cannot read TLS file {}: {why}", .path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// What the files say together.
    #[error("cannot set up TLS")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// An acceptor with the files of `config`: TLS 1.2 or 1.3, HTTP/2 or HTTP/1.1.
///
/// # Errors
///
/// The file that cannot be used, or why they do not fit together.
pub fn acceptor(config: &TlsConfig) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let setup = |error: Box<dyn std::error::Error + Send + Sync>| TlsError::Setup(error);
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| setup(error.into()))?;
    let builder = if config.verify_clients {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&config.ca)? {
            roots.add(certificate).map_err(|error| unusable(&config.ca, error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| unusable(&config.ca, error))?;
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let key =
        PrivateKeyDer::from_pem_file(&config.key).map_err(|error| unusable(&config.key, error))?;
    let mut server = builder
        .with_single_cert(certificates(&config.cert)?, key)
        .map_err(|error| setup(error.into()))?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(server)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(|error| unusable(path, error))?
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(path, error))?;
    if certificates.is_empty() {
        return Err(unusable(path, "it holds no certificate"));
    }
    Ok(certificates)
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> TlsError {
    TlsError::File { path: path.to_owned(), why: why.to_string() }
}

/// The common name in the subject of a certificate: who authorisation plugins are told.
///
/// Walks the structure of RFC 5280 §4.1 just far enough; `None` for whatever does not look like it.
#[must_use]
pub fn common_name(certificate: &[u8]) -> Option<String> {
    /// id-at-commonName, 2.5.4.3.
    const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    let (_, certificate, _) = element(certificate)?;
    let (_, mut fields, _) = element(certificate)?;
    // version [0], optional
    if let Some((0xa0, _, rest)) = element(fields) {
        fields = rest;
    }
    // serialNumber, signature, issuer, validity
    for _ in 0..4 {
        (_, _, fields) = element(fields)?;
    }
    let (_, mut subject, _) = element(fields)?;
    while let Some((_, set, rest)) = element(subject) {
        subject = rest;
        let (_, pair, _) = element(set)?;
        let (_, kind, after) = element(pair)?;
        if kind == COMMON_NAME {
            let (_, text, _) = element(after)?;
            return String::from_utf8(text.to_vec()).ok();
        }
    }
    None
}

/// The first element of DER: tag, content and what follows. Source: X.690 §8.1, §10.1.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        if count == 0 || count > 4 || rest.len() < count {
            return None;
        }
        let (digits, rest) = rest.split_at(count);
        (digits.iter().fold(0, |sum, digit| (sum << 8) | usize::from(*digit)), rest)
    };
    (rest.len() >= length).then(|| {
        let (content, rest) = rest.split_at(length);
        (tag, content, rest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An element of DER with a short length.
    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
    }

    #[test]
    fn the_common_name_is_found() {
        let attribute = |oid: &[u8], text: &str| {
            let pair = [der(0x06, oid), der(0x0c, text.as_bytes())].concat();
            der(0x31, &der(0x30, &pair))
        };
        let subject =
            [attribute(&[0x55, 0x04, 0x0a], "acme"), attribute(&[0x55, 0x04, 0x03], "alice")]
                .concat();
        let fields = [
            der(0xa0, &der(0x02, &[2])),
            der(0x02, &[1]),
            der(0x30, &[]),
            der(0x30, &[]),
            der(0x30, &[]),
            der(0x30, &subject),
        ]
        .concat();
        let certificate = der(0x30, &der(0x30, &fields));
        assert_eq!(common_name(&certificate).as_deref(), Some("alice"));
        for end in 0..certificate.len() {
            assert_eq!(common_name(&certificate[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn a_file_that_is_no_certificate_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cert.pem");
        std::fs::write(&path, "nothing").unwrap();
        let config =
            TlsConfig { ca: path.clone(), cert: path.clone(), key: path, verify_clients: true };
        let error = acceptor(&config).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("cert.pem"), "{error}");
    }
}

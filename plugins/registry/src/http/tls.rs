//! Whom to trust: the machine's certificate authorities and `/etc/docker/certs.d/<host>/`.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as Rustls, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

/// Where operators put a registry's certificates, in a directory called like the registry.
pub(crate) const CERTIFICATES: &str = "/etc/docker/certs.d";

/// Names that distributions give to the bundle of certificate authorities.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The largest file, in bytes, and the most files of a directory that are read.
const MAX_FILE: u64 = 16 << 20;
const MAX_FILES: usize = 1000;

/// Why certificates are of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file or directory.
    #[error("cannot read {}", .path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file's content.
    #[error("cannot use {}: {why}", .path.display())]
    Content {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Half a pair.
    #[error(
        "{} is missing: {} needs it; certificate authorities go in files named *.crt",
        .missing.display(),
        .present.display()
    )]
    Pair {
        /// The file that is there.
        present: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// Two pairs, and nothing says which one to show.
    #[error("{} holds more than one client certificate", .0.display())]
    Ambiguous(PathBuf),
    /// No certificate authority at all.
    #[error(
        "no certificate authority is known: install ca-certificates or put a .crt file in {}",
        .0.display()
    )]
    NoRoots(PathBuf),
    /// What they say together.
    #[error("cannot set up TLS")]
    Setup(#[from] Rustls),
}

/// How to speak TLS to the registry whose certificates are in `directory`, which need not exist.
/// `authority` is one more file of certificates to trust; `insecure` accepts every certificate.
/// Blocking.
///
/// # Errors
///
/// The file that cannot be used.
pub(crate) fn client(
    directory: &Path,
    authority: Option<&Path>,
    insecure: bool,
) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut own = Own::read(directory)?;
    if let Some(path) = authority {
        own.authorities.extend(certificates(path)?);
    }
    let trust = if insecure {
        Trust::Anyone
    } else {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(system_authorities()?);
        roots.add_parsable_certificates(own.authorities.iter().cloned());
        if roots.is_empty() {
            return Err(TlsError::NoRoots(directory.to_owned()));
        }
        let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| Rustls::General(error.to_string()))?;
        Trust::Known { inner, pinned: own.authorities }
    };
    let algorithms = provider.signature_verification_algorithms;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { trust, algorithms }));
    let mut config = match own.identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

type Certificates = Vec<CertificateDer<'static>>;

/// What an operator has put down for one registry.
#[derive(Default)]
struct Own {
    /// `*.crt`
    authorities: Certificates,
    /// `*.cert` with the `*.key` of the same name.
    identity: Option<(Certificates, PrivateKeyDer<'static>)>,
}

impl Own {
    fn read(directory: &Path) -> Result<Self, TlsError> {
        let mut own = Self::default();
        let mut names = match directory.read_dir() {
            Ok(entries) => entries
                .take(MAX_FILES)
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<Result<Vec<_>, _>>(),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(own),
            Err(error) => Err(error),
        }
        .map_err(|source| TlsError::Read { path: directory.to_owned(), source })?;
        names.sort();
        for path in &names {
            match path.extension().and_then(OsStr::to_str) {
                Some("crt") => own.authorities.extend(certificates(path)?),
                Some("cert") => {
                    let key = partner(path, "key", &names)?;
                    if own.identity.is_some() {
                        return Err(TlsError::Ambiguous(directory.to_owned()));
                    }
                    let secret = PrivateKeyDer::from_pem_slice(&read(&key)?)
                        .map_err(|error| unusable(&key, error))?;
                    own.identity = Some((certificates(path)?, secret));
                }
                Some("key") => drop(partner(path, "cert", &names)?),
                _ => {}
            }
        }
        Ok(own)
    }
}

fn partner(path: &Path, extension: &str, names: &[PathBuf]) -> Result<PathBuf, TlsError> {
    let wanted = path.with_extension(extension);
    if names.contains(&wanted) {
        return Ok(wanted);
    }
    Err(TlsError::Pair { present: path.to_owned(), missing: wanted })
}

/// The bundle of the machine; `SSL_CERT_FILE` names another one. None is not an error.
fn system_authorities() -> Result<Certificates, TlsError> {
    if let Some(path) = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) {
        return certificates(Path::new(&path));
    }
    let bundle = BUNDLES.iter().map(Path::new).find(|path| path.exists());
    bundle.map_or_else(|| Ok(Vec::new()), certificates)
}

fn certificates(path: &Path) -> Result<Certificates, TlsError> {
    let all = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(path, error))?;
    if all.is_empty() {
        return Err(unusable(path, "it holds no certificate"));
    }
    Ok(all)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.to_owned(), source };
    let mut content = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > MAX_FILE {
        return Err(unusable(path, format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(content)
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> TlsError {
    TlsError::Content { path: path.to_owned(), why: why.to_string() }
}

/// Whose certificates are accepted.
#[derive(Debug)]
enum Trust {
    /// Of those whom the authorities vouch for, and the ones an operator has put down.
    Known { inner: Arc<WebPkiServerVerifier>, pinned: Certificates },
    /// Of whoever holds its key: what `insecure-registries` asks for.
    Anyone,
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    /// A self-signed certificate is usually marked as an authority's, which the path validation
    /// takes for a mistake when a server shows it. It has looked at the dates by then; the name is
    /// left.
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Rustls> {
        let Trust::Known { inner, pinned } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        match inner.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            Err(Rustls::InvalidCertificate(CertificateError::Other(why)))
                if why.to_string().contains("CaUsedAsEndEntity")
                    && pinned.contains(certificate) =>
            {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Rustls> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Rustls> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A made-up certificate: enough where it is only read as PEM.
    const PEM: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";

    #[test]
    fn directories_that_cannot_be_used_say_why() {
        let cases: [(&[(&str, &str)], &str); 6] = [
            (&[("ca.crt", "nothing")], "ca.crt: it holds no certificate"),
            (&[("me.cert", PEM)], "me.key is missing"),
            (&[("me.key", "x")], "me.cert is missing"),
            (&[("me.cert", PEM), ("me.key", "nothing")], "cannot use"),
            (&[("ca.crt", "-----BEGIN CERTIFICATE-----\n!\n")], "ca.crt"),
            (&[("README", "x"), ("ca.crt", PEM)], ""),
        ];
        for (files, expected) in cases {
            let directory = tempfile::tempdir().unwrap();
            for (name, content) in files {
                std::fs::write(directory.path().join(name), content).unwrap();
            }
            let said = Own::read(directory.path()).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{said}");
        }
    }

    #[test]
    fn no_directory_is_fine() {
        let own = Own::read(Path::new("/nonexistent/certs.d/reg.example")).unwrap();
        assert!(own.authorities.is_empty() && own.identity.is_none());
    }
}

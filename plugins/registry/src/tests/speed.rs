//! How fast bytes move over this machine's own network. Run by hand, with optimisation:
//! `cargo test --release -p gantry-registry -- --ignored --nocapture speed`.

use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const SIZE: u64 = 2 << 30;

/// A writer that counts, and hashes if asked to.
struct Sink(u64, Option<sha2::Sha256>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        if let Some(hash) = &mut self.1 {
            hash.update(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl BlobWriter for Sink {
    fn offset(&self) -> u64 {
        self.0
    }

    fn restart(&mut self) -> Result<()> {
        self.0 = 0;
        Ok(())
    }

    fn commit(self: Box<Self>, _: Option<&Digest>) -> Result<BlobInfo> {
        Err(Error::unsupported("nobody commits here"))
    }
}

/// A server that gives zeros as fast as it can, and swallows what it gets.
async fn firehose() -> (u16, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    #[expect(clippy::disallowed_methods, reason = "aborted by the test")]
    let task = tokio::spawn(async move {
        let mut all = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            all.spawn(async move {
                let mut buffer = vec![0; 1 << 20];
                loop {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(0x16) | Err(_) => return,
                            Ok(byte) => head.push(byte),
                        }
                    }
                    let head = String::from_utf8_lossy(&head).to_lowercase();
                    let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
                    let mut left: u64 = length.map_or(0, |l| l.parse().unwrap());
                    while left > 0 {
                        left -= stream.read(&mut buffer).await.unwrap() as u64;
                    }
                    let location = "Location: /up\r\n";
                    let text = match head.split(' ').next().unwrap_or_default() {
                        "post" => reply("202 Accepted", location, ""),
                        "put" => reply("201 Created", "", ""),
                        _ if head.starts_with("get /v2/ ") => reply("200 OK", "", ""),
                        _ => format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"),
                    };
                    stream.write_all(text.as_bytes()).await.unwrap();
                    if text.contains(&format!("{SIZE}")) {
                        buffer.fill(0);
                        for _ in 0..SIZE >> 20 {
                            stream.write_all(&buffer).await.unwrap();
                        }
                    }
                }
            });
        }
    });
    (port, task)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: run it by hand, with optimisation"]
async fn speed_of_large_blobs() {
    let (port, task) = firehose().await;
    let shared = Setup::default().shared();
    let host = format!("127.0.0.1:{port}");
    let session = session(&shared, &host, Access::Push, &ali()).await.unwrap();
    let digest = digest_of(b"");
    let rate = |begun: Instant| SIZE as f64 / begun.elapsed().as_secs_f64() / 1e9;
    for (what, hash) in [("counted", None), ("hashed", Some(sha2::Sha256::new()))] {
        let sink = Box::new(Sink(0, hash));
        let begun = Instant::now();
        session.fetch_blob(&cx(), &digest, SIZE, &[], sink, silent()).await.unwrap();
        println!("fetch_blob, {what}: {:.2} GB/s", rate(begun));
    }
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    file.as_file().set_len(SIZE).unwrap();
    let open = || std::fs::File::open(file.path()).map_err(|e| Error::io("open", "a file", e));
    let begun = Instant::now();
    session.push_blob(&cx(), &digest, SIZE, &open, silent()).await.unwrap();
    println!("push_blob: {:.2} GB/s", rate(begun));
    task.abort();
}

//! A slow link for measurements: passes UDP packets on after a delay, each way.
//!
//! Usage: `rustc -O -o relay relay.rs; relay LISTEN SERVER DELAY_MICROSECONDS`. One machine has no slow link to itself, and not
//! every machine has `netem`. Packets keep their order, and none is lost but for want of buffers.

use std::collections::{HashMap, VecDeque};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, thread};

/// What a packet is at most.
const LARGEST: usize = 65_536;
/// Packets on their way at once; more are lost, as on any link.
const MOST: usize = 262_144;

unsafe extern "C" {
    fn setsockopt(fd: i32, level: i32, name: i32, value: *const i32, len: u32) -> i32;
}

/// One direction.
struct Line {
    queue: Mutex<VecDeque<(Instant, Vec<u8>)>>,
    filled: Condvar,
}

impl Line {
    /// A line that hands its packets to `send`.
    fn new(send: impl Fn(&[u8]) + Send + 'static) -> Arc<Line> {
        let line = Arc::new(Line { queue: Mutex::default(), filled: Condvar::new() });
        let here = Arc::clone(&line);
        thread::spawn(move || loop {
            let due = {
                let mut queue = here.queue.lock().unwrap_or_else(PoisonError::into_inner);
                loop {
                    let now = Instant::now();
                    match queue.front() {
                        None => {
                            queue = here.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
                        }
                        Some((at, _)) if *at > now => {
                            let pause = *at - now;
                            drop(queue);
                            thread::sleep(pause);
                            queue = here.queue.lock().unwrap_or_else(PoisonError::into_inner);
                        }
                        Some(_) => break,
                    }
                }
                let now = Instant::now();
                let n = queue.iter().take_while(|(at, _)| *at <= now).count();
                queue.drain(..n).collect::<Vec<_>>()
            };
            for (_, packet) in due {
                send(&packet);
            }
        });
        line
    }

    fn put(&self, packet: &[u8], delay: Duration) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.len() < MOST {
            queue.push_back((Instant::now() + delay, packet.to_vec()));
            self.filled.notify_one();
        }
    }
}

fn socket(at: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(at).expect("binding");
    let bytes = 64 << 20;
    // SO_RCVBUFFORCE and SO_SNDBUFFORCE, then what anybody may ask for.
    for name in [33, 32, 8, 7] {
        // SAFETY: the pointer leads to a number of the length that is named.
        let _ = unsafe { setsockopt(socket.as_raw_fd(), 1, name, &bytes, 4) };
    }
    socket
}

fn main() {
    let args: Vec<String> = env::args().collect();
    let [_, listen, server, delay] = &args[..] else {
        panic!("usage: relay LISTEN SERVER DELAY_MICROSECONDS");
    };
    let listen: SocketAddr = listen.parse().expect("an address to listen on");
    let server: SocketAddr = server.parse().expect("the server's address");
    let delay = Duration::from_micros(delay.parse().expect("a delay in microseconds"));
    let front = Arc::new(socket(listen));
    let mut lines: HashMap<SocketAddr, Arc<Line>> = HashMap::new();
    let mut packet = vec![0; LARGEST];
    loop {
        let Ok((len, client)) = front.recv_from(&mut packet) else { continue };
        let there = lines.entry(client).or_insert_with(|| {
            let back = Arc::new(socket(SocketAddr::new(listen.ip(), 0)));
            back.connect(server).expect("the server's address");
            let front = Arc::clone(&front);
            let home = Line::new(move |packet| {
                let _ = front.send_to(packet, client);
            });
            let from = Arc::clone(&back);
            thread::spawn(move || {
                let mut packet = vec![0; LARGEST];
                loop {
                    match from.recv(&mut packet) {
                        Ok(len) => home.put(&packet[..len], delay),
                        // Refused while the server is away.
                        Err(_) => thread::sleep(Duration::from_millis(1)),
                    }
                }
            });
            Line::new(move |packet| {
                let _ = back.send(packet);
            })
        });
        there.put(&packet[..len], delay);
    }
}

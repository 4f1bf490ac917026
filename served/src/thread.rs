//! A server on a thread of its own, with a runtime of its own: measured, that halves the time of a
//! call against a shared one.

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

use tokio::sync::watch;

/// How a server is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Finish what is under way, bring all to stable storage.
    Drain,
    /// At once, as if the process had been killed. What was written is in the hands of the system.
    Abrupt,
}

/// Tells the server's own tasks when it ends.
#[derive(Clone, Debug)]
pub struct StopSignal(watch::Receiver<Option<Ending>>);

impl StopSignal {
    /// Waits for the end.
    pub async fn wait(&mut self) -> Ending {
        match self.0.wait_for(Option::is_some).await {
            Ok(ending) => ending.unwrap_or(Ending::Drain),
            // Whoever could have asked for an orderly end is gone.
            Err(_) => Ending::Abrupt,
        }
    }
}

/// A running server. Dropping it ends it abruptly.
#[derive(Debug)]
pub struct ServerThread<E> {
    stop: watch::Sender<Option<Ending>>,
    thread: Option<JoinHandle<Result<(), E>>>,
}

impl<E: Send + 'static + From<io::Error>> ServerThread<E> {
    /// Starts a thread called `name`. `begin` runs on it first and says what the caller gets, or why
    /// there is no server, together with the server's work; that ends when the signal says so.
    ///
    /// # Errors
    /// What `begin` says, or that there can be no thread.
    pub fn start<T, Begin, Work>(
        name: &str,
        blocking_threads: usize,
        begin: Begin,
    ) -> Result<(T, Self), E>
    where
        T: Send + 'static,
        Begin: AsyncFnOnce(StopSignal) -> Result<(T, Work), E> + Send + 'static,
        Work: Future<Output = Result<(), E>>,
    {
        let (stop, signal) = watch::channel(None);
        let (started, starting) = std::sync::mpsc::sync_channel(1);
        let thread_name = name.to_owned();
        let run = move || -> Result<(), E> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(blocking_threads)
                .thread_name(format!("{thread_name}-io"))
                .build()?;
            let work = async {
                match begin(StopSignal(signal)).await {
                    Ok((value, work)) => {
                        // Fails only when the starter is gone, and then the signal ends the work.
                        let _ = started.send(Ok(value));
                        work.await
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                        Ok(())
                    }
                }
            };
            runtime.block_on(work)
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(run)?;
        match starting.recv() {
            Ok(Ok(value)) => Ok((value, ServerThread { stop, thread: Some(thread) })),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(match thread.join() {
                Ok(Err(error)) => error,
                Ok(Ok(())) | Err(_) => died().into(),
            }),
        }
    }

    /// Ends the server and waits until it has ended.
    ///
    /// # Errors
    /// What could not be brought to an end.
    pub fn stop(mut self, ending: Ending) -> Result<(), E> {
        self.end(ending)
    }

    /// Asks the server to end, without waiting.
    pub fn request_stop(&self) {
        self.stop.send_replace(Some(Ending::Drain));
    }

    fn end(&mut self, ending: Ending) -> Result<(), E> {
        self.stop.send_replace(Some(ending));
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(died().into()),
        }
    }
}

impl<E> Drop for ServerThread<E> {
    fn drop(&mut self) {
        self.stop.send_replace(Some(Ending::Abrupt));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a server thread has panicked");
        }
    }
}

fn died() -> io::Error {
    io::Error::other("the server's thread has panicked")
}

//! Work that takes long, done beside the threads that serve.
//!
//! There is about one serving thread per CPU. A copy-up of gigabytes in one of them would make everybody wait.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::cpus::Cpus;
use super::guard::survive;

/// A few threads for long work, started when there is some.
#[derive(Debug)]
pub(super) struct Slow {
    queue: OnceLock<Option<Sender<Job>>>,
    threads: usize,
    /// Not those of the serving thread that happens to start the others.
    cpus: Cpus,
}

type Job = Box<dyn FnOnce() + Send>;

impl Slow {
    /// Prepares so many threads.
    pub(super) fn new(threads: usize) -> Slow {
        Slow { queue: OnceLock::new(), threads, cpus: Cpus::allowed() }
    }

    /// Does `job` in another thread; here and now if there can be none.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        match self.queue.get_or_init(|| start(self.threads, &self.cpus)) {
            Some(queue) => {
                if let Err(refused) = queue.send(Box::new(job)) {
                    refused.0();
                }
            }
            None => job(),
        }
    }
}

/// Starts the threads; they end when the queue is dropped.
fn start(threads: usize, cpus: &Cpus) -> Option<Sender<Job>> {
    let (sender, receiver) = channel();
    let receiver = Arc::new(Mutex::new(receiver));
    let started = (0..threads).filter(|number| {
        let receiver: Arc<Mutex<Receiver<Job>>> = Arc::clone(&receiver);
        let cpus = cpus.clone();
        let work = move || {
            cpus.disinherit();
            loop {
                let next = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
                match next {
                    Ok(job) => drop(survive(job)),
                    Err(_) => break,
                }
            }
        };
        std::thread::Builder::new().name(format!("slow-{number}")).spawn(work).is_ok()
    });
    (started.count() > 0).then_some(sender)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    const THREADS: usize = 3;

    #[test]
    fn jobs_run_beside_each_other_and_outlive_a_panic() {
        let slow = Slow::new(THREADS);
        for _ in 0..THREADS {
            slow.run(|| panic!("on purpose"));
        }
        let barrier = Arc::new(Barrier::new(THREADS + 1));
        for _ in 0..THREADS {
            let barrier = Arc::clone(&barrier);
            slow.run(move || {
                barrier.wait();
            });
        }
        barrier.wait();
    }
}

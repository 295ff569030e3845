//! Log lines on standard error, for those who ask.

use tracing_subscriber::filter::LevelFilter;

use crate::args::LogLevel;

/// Starts logging at `level`.
pub(crate) fn start(level: LogLevel) {
    let filter = match level {
        LogLevel::Trace => LevelFilter::TRACE,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Off => return,
    };
    let subscriber =
        tracing_subscriber::fmt().with_max_level(filter).with_writer(std::io::stderr).with_target(false).without_time();
    // Only the first one counts, and this is the only one.
    let _ = tracing::subscriber::set_global_default(subscriber.finish());
}

//! The port for people and monitoring: `/metrics` and `/health`.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use netfs_common::telemetry::Metrics;
use tokio::net::TcpListener;

use crate::health::Health;

/// Why there is no such port.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address cannot be bound.
    #[error("cannot listen on {address} (http.listen): {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The listener broke.
    #[error("the HTTP server failed: {0}")]
    Serve(std::io::Error),
}

#[derive(Clone)]
struct Shared {
    metrics: &'static Metrics,
    health: Health,
}

/// A bound port that is not served yet.
#[derive(Debug)]
pub struct Http {
    listener: TcpListener,
}

impl Http {
    /// Binds the port.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub async fn bind(address: SocketAddr) -> Result<Http, HttpError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| HttpError::Bind { address, source })?;
        Ok(Http { listener })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until it is dropped.
    ///
    /// # Errors
    /// When the listener breaks.
    pub async fn serve(self, metrics: &'static Metrics, health: Health) -> Result<(), HttpError> {
        let router = Router::new()
            .route("/metrics", get(show_metrics))
            .route("/health", get(show_health))
            .with_state(Shared { metrics, health });
        axum::serve(self.listener, router).await.map_err(HttpError::Serve)
    }
}

async fn show_metrics(State(shared): State<Shared>) -> Response {
    match shared.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, shared.metrics.content_type())], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn show_health(State(shared): State<Shared>) -> Response {
    match shared.health.ask() {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

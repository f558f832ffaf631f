//! Several sequences decoded together.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::kv_target::{Heads, KvTarget};
use crate::model::{Attention, Model};
use crate::session::Session;
use crate::workspace::Workspace;

/// Decodes one token of each of several sessions in one pass, which reads every weight once for all of them.
///
/// All buffers are made with it; decoding allocates nothing.
pub struct Batch {
    model: Model,
    ws: Workspace,
    /// (sessions, vocab)
    logits: Vec<f32>,
}

impl std::fmt::Debug for Batch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batch").field("sessions", &self.ws.n).finish_non_exhaustive()
    }
}

impl Batch {
    /// Makes buffers for up to `sessions` sessions of `model` at a time.
    ///
    /// # Errors
    /// [`Error::Quant`] if so large a batch cannot be.
    pub fn new(model: &Model, sessions: usize) -> Result<Self> {
        let sessions = sessions.max(1);
        let ws = Workspace::new(model.config(), model.inner.needs, sessions, 0)?;
        let logits = vec![0.0; sessions.saturating_mul(model.config().vocab_size)];
        Ok(Self { model: model.clone(), ws, logits })
    }

    /// Returns how many sessions there is room for.
    pub fn capacity(&self) -> usize {
        self.ws.n
    }

    /// Appends `tokens[i]` to `sessions[i]`, whose [`Session::logits`] are then those after it.
    ///
    /// Sessions may be of any length.
    ///
    /// For packed models the logits are, to the bit, those of [`Session::decode`]; for plain ones to
    /// rounding.
    ///
    /// # Errors
    /// [`Error::Full`] and [`Error::Token`] (with the session's index as position) if a session cannot take
    /// its token, [`Error::Argument`] if there are more sessions than room, another number of tokens, or a
    /// session of another model. Every session is then as before.
    pub fn decode(&mut self, sessions: &mut [&mut Session], tokens: &[u32]) -> Result<()> {
        let (n, room) = (sessions.len(), self.ws.n);
        if n != tokens.len() {
            return Err(Error::argument(format!("{} tokens for {n} sessions", tokens.len())));
        }
        if n > room {
            return Err(Error::argument(format!("{n} sessions in a batch with room for {room}")));
        }
        for (position, (session, &token)) in sessions.iter().zip(tokens).enumerate() {
            if !Arc::ptr_eq(&session.model().inner, &self.model.inner) {
                return Err(Error::argument(format!("session {position} of the batch has another model")));
            }
            session.check(&[token]).map_err(|error| match error {
                Error::Token { token, vocab_size, .. } => Error::Token { token, position, vocab_size },
                other => other,
            })?;
        }
        if n == 0 {
            return Ok(());
        }
        let (d, vocab) = (self.model.config().hidden_size, self.model.config().vocab_size);
        let hidden = &mut self.ws.hidden[..n * d];
        self.model.embed(tokens, hidden)?;
        for layer in 0..self.model.inner.layers.len() {
            let mut kv = SessionsKv { sessions: &mut *sessions, layer };
            self.model.run_layer(layer, hidden, n, &mut self.ws.run, &mut kv, &mut ())?;
        }
        let logits = &mut self.logits[..n * vocab];
        self.model.run_head(&self.ws.hidden[..n * d], n, &mut self.ws.run, logits)?;
        for ((session, &token), logits) in sessions.iter_mut().zip(tokens).zip(logits.chunks_exact(vocab)) {
            session.accept(token, logits);
        }
        Ok(())
    }
}

/// One token of each of several sessions, at one layer.
struct SessionsKv<'a, 's> {
    sessions: &'a mut [&'s mut Session],
    layer: usize,
}

impl KvTarget for SessionsKv<'_, '_> {
    fn attend(&mut self, model: &Model, attention: &Attention, heads: Heads<'_>) -> Result<()> {
        let (q_size, kv_size) = (model.config().query_size(), model.config().key_value_size());
        let team = &*model.inner.team;
        let (layer, v) = (self.layer, heads.v);
        let failure = Mutex::new(None);
        let rows = [(heads.q, q_size), (heads.k, kv_size), (heads.mixed, q_size)];
        team.rows_mut(self.sessions, rows, |i, session, [q, k, mixed]| {
            let (cache, rope, at) = session.kv();
            let table = rope.of(attention.kind.rotary);
            model.rotate(q, attention.q_norm.as_deref(), table, at);
            model.rotate(k, attention.k_norm.as_deref(), table, at);
            let v = &v[i * kv_size..(i + 1) * kv_size];
            let done = cache.write(team, layer, at, 1, k, v).map_err(Error::from);
            let done = done.and_then(|()| model.attend(attention, cache, layer, at, q, mixed));
            if let Err(error) = done {
                *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

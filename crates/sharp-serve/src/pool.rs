//! Sessions that are used again: the prefix cache.

use std::sync::Arc;

use sharp_infer::{Model, Session};

use crate::error::Result;
use crate::memory::{Memory, SessionCost};

/// Sessions of finished sequences. A new prompt gets the one that it has most in common with.
pub(crate) struct Pool {
    model: Model,
    context: usize,
    memory: Arc<Memory>,
    cost: SessionCost,
    /// Least recently used first.
    idle: Vec<Session>,
    made: usize,
    most: usize,
}

impl Pool {
    /// Allows at most `most` sessions of `context` tokens, made when they are needed.
    pub(crate) fn new(model: &Model, context: usize, most: usize, memory: &Arc<Memory>) -> Self {
        let cost = SessionCost::new(model, context, memory);
        let (model, memory) = (model.clone(), memory.clone());
        Self { model, context, memory, cost, idle: Vec::new(), made: 0, most }
    }

    /// Tells what idle sessions hold, and gives up those, least recently used first, whose memory is reserved
    /// by requests.
    fn trim(&mut self) -> Result<()> {
        self.account()?;
        while self.memory.is_short() && !self.idle.is_empty() {
            self.forget();
            self.account()?;
        }
        Ok(())
    }

    fn account(&self) -> Result<()> {
        let mut held = 0;
        for session in &self.idle {
            held += self.cost.bytes(session.longest())?;
        }
        self.memory.set_idle(held);
        Ok(())
    }

    fn forget(&mut self) {
        self.idle.remove(0);
        self.lost();
    }

    /// Takes a session that holds a beginning of `prompt`, never all of it: the last token has to be run for
    /// its logits. With `fresh` it is empty.
    pub(crate) fn take(&mut self, prompt: &[u32], fresh: bool) -> Result<Session> {
        let common = |session: &Session| {
            let room = prompt.len().saturating_sub(1);
            session.tokens().iter().zip(prompt).take(room).take_while(|(a, b)| a == b).count()
        };
        // A session worth more to a prompt like the one it was made for is left to that.
        let best = (self.idle.iter().enumerate())
            .map(|(i, session)| (common(session), i, session.len()))
            .filter(|&(common, _, len)| !fresh && common > 0 && 2 * common >= len)
            .max();
        let at = match best {
            Some((_, i, _)) => Some(i),
            None if self.made < self.most => None,
            None => (!self.idle.is_empty()).then_some(0),
        };
        let Some(at) = at else {
            self.trim()?;
            return self.make();
        };
        let mut session = self.idle.remove(at);
        let keep = if fresh { 0 } else { common(&session) };
        session.truncate(keep);
        self.trim()?;
        Ok(session)
    }

    /// Makes a session; idle ones make way where the system has no memory.
    fn make(&mut self) -> Result<Session> {
        loop {
            match Session::new(&self.model, self.context) {
                Ok(session) => {
                    self.made += 1;
                    return Ok(session);
                }
                Err(sharp_infer::Error::Quant(sharp_quant::Error::Memory { .. }))
                    if !self.idle.is_empty() =>
                {
                    self.forget();
                    self.account()?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Takes a session back.
    pub(crate) fn give(&mut self, session: Session) -> Result<()> {
        self.idle.push(session);
        self.trim()
    }

    /// Forgets a session that is lost (its sequence failed).
    pub(crate) fn lost(&mut self) {
        self.made = self.made.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use sharp_infer::{Options, Synthetic};
    use sharp_model::ModelConfig;

    use super::*;

    #[test]
    fn a_prompt_gets_the_session_that_begins_like_it() {
        let config = ModelConfig::llama(32, 48, 2, 4, 2, 64).unwrap();
        let source = Synthetic::in_memory(&config, None, 1).unwrap();
        let model = Model::from_source(&source, &Options::default()).unwrap();
        let mut pool = Pool::new(&model, 16, 2, &Arc::new(Memory::new(None)));
        let mut first = pool.take(&[1, 2, 3, 4], false).unwrap();
        first.prefill(&[1, 2, 3, 4]).unwrap();
        let mut second = pool.take(&[9, 8], false).unwrap();
        second.prefill(&[9, 8]).unwrap();
        pool.give(first).unwrap();
        pool.give(second).unwrap();
        // The same prompt again: all but its last token.
        let again = pool.take(&[1, 2, 3, 4], false).unwrap();
        assert_eq!(again.tokens(), [1, 2, 3]);
        pool.give(again).unwrap();
        let longer = pool.take(&[1, 2, 3, 7, 7], false).unwrap();
        assert_eq!(longer.tokens(), [1, 2, 3]);
        pool.give(longer).unwrap();
        // Nothing in common: the one that was not used for longest.
        let other = pool.take(&[5, 5], false).unwrap();
        assert!(other.is_empty());
        assert_eq!(pool.idle[0].tokens(), [1, 2, 3]);
        assert!(pool.take(&[1, 2, 3, 4], true).unwrap().is_empty());
    }

    #[test]
    fn idle_sessions_make_way_for_requests() {
        let config = ModelConfig::llama(32, 48, 2, 4, 2, 64).unwrap();
        let source = Synthetic::in_memory(&config, None, 1).unwrap();
        let model = Model::from_source(&source, &Options::default()).unwrap();
        let one = Session::bytes(&model, 16, 16).unwrap();
        let memory = Arc::new(Memory::new(Some(3 * one)));
        let mut pool = Pool::new(&model, 16, 8, &memory);
        let mut sessions: Vec<Session> = (0..3).map(|_| pool.take(&[1], true).unwrap()).collect();
        for session in &mut sessions {
            session.prefill(&[1; 16]).unwrap();
        }
        for session in sessions {
            pool.give(session).unwrap();
        }
        assert_eq!(pool.idle.len(), 3);
        // Room for one of them beside what is reserved.
        let held = memory.reserve(2 * one).unwrap();
        drop(pool.take(&[2], false).unwrap());
        assert_eq!((pool.idle.len(), pool.made), (1, 2));
        drop(held);
    }
}

//! `/v1/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;

use super::body::Received;
use super::error::ApiError;
use super::fields::Fields;
use super::parameters::Parameters;
use super::prompts::{self, Prompt};
use super::reply::{Kind, Reply, Size};
use super::{Common, Events, Site, aside};
use crate::job::Job;

/// Likeliest tokens told beside each token.
const MOST_LOGPROBS: usize = 20;
/// Tokens of an answer where the request does not say, as OpenAI has it.
const USUAL_TOKENS: usize = 16;

pub(crate) async fn post(State(site): State<Arc<Site>>, request: Request) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let mut body = Received::new(&site, request).await?;
    let (reply, stream, jobs, events) =
        aside(&site, arrived, move |site| prepare(site, body.fields()?, arrived)).await?;
    site.submit(jobs)?;
    reply.answer(events, stream).await
}

/// Checks a prompt's tokens; where there are none, puts the token there that texts begin with.
fn tokens(site: &Site, tokens: Vec<u32>) -> Result<Vec<u32>, ApiError> {
    site.check_tokens(&tokens, "prompt")?;
    if !tokens.is_empty() {
        return Ok(tokens);
    }
    // Something has to stand before the first token.
    let begin = site.tokenizer.bos_id().or_else(|| site.tokenizer.eos_ids().first().copied());
    match begin {
        Some(token) => Ok(vec![token]),
        None => Err(ApiError::bad("the prompt is empty").with_param("prompt")),
    }
}

fn prepare(
    site: &Arc<Site>,
    mut fields: Fields,
    arrived: Instant,
) -> Result<(Reply, bool, Vec<Job>, Events), ApiError> {
    let parameters = Parameters::read(&mut fields, site.vocab_size)?;
    let prompt = fields.raw("prompt");
    let echo = fields.flag("echo")?.unwrap_or(false);
    let logprobs = fields.count("logprobs")?;
    let best_of = fields.count("best_of")?;
    fields.refuse("suffix", &[])?;
    fields.finish()?;
    site.check_model(parameters.model.as_deref())?;
    if best_of.is_some_and(|best| best != parameters.n) {
        let message = "best_of other than n is not supported by this server";
        return Err(ApiError::bad(message).with_code("unsupported_parameter").with_param("best_of"));
    }
    if logprobs.is_some_and(|n| n > MOST_LOGPROBS) {
        return Err(
            ApiError::bad(format!("logprobs has to be at most {MOST_LOGPROBS}")).with_param("logprobs")
        );
    }
    let decode = |tokens: &[u32]| {
        if !echo {
            return Ok(String::new());
        }
        site.tokenizer.decode(tokens).map_err(|e| ApiError::bad(e.to_string()).with_param("prompt"))
    };
    let prompts = prompts::read(site, prompt.as_deref(), parameters.n)?;
    let prompts = prompts.into_iter().map(|prompt| match prompt {
        Prompt::Text(text) => site.encode(&text, true, "prompt").map(|ids| (text, ids)),
        Prompt::Tokens(ids) => decode(&ids).map(|text| (text, ids)),
    });
    let n = parameters.n;
    let mut texts = Vec::new();
    let mut prompt_tokens = 0;
    let mut sequences: u64 = 0;
    let mut size = Size { entries: logprobs.map_or(0, |top| top + 1), ..Size::default() };
    for prompt in prompts {
        let (text, ids) = prompt?;
        let ids: Arc<[u32]> = tokens(site, ids)?.into();
        let max_tokens = site.check_prompt(&ids, Some(parameters.max_tokens.unwrap_or(USUAL_TOKENS)))?;
        prompt_tokens += ids.len();
        let text: Arc<str> = if echo { text.into() } else { Arc::default() };
        let bytes = site.sequence_bytes(ids.len() + max_tokens)?;
        sequences = sequences.saturating_add(bytes.saturating_mul(n as u64));
        size.text += text.len() * n;
        size.tokens += ids.len() + max_tokens * n;
        size.scored += (if echo { ids.len() } else { 0 } + max_tokens) * n;
        texts.push((text, ids, max_tokens, bytes));
    }
    let mut memory = site.reserve(sequences.saturating_add(size.bytes()))?;
    let (common, events) = Common::new(site, arrived);
    let mut jobs = Vec::new();
    let mut echoes = Vec::new();
    for (text, ids, max_tokens, bytes) in texts {
        for j in 0..n {
            echoes.push(text.clone());
            jobs.push(Job {
                logprobs,
                score_prompt: echo && logprobs.is_some(),
                ..common.job(&parameters, (jobs.len(), j), &ids, max_tokens, memory.split(bytes))
            });
        }
    }
    let reply = Reply::new(site, Kind::Completion { echoes }, jobs.len(), prompt_tokens, &parameters, memory)
        .with_logprobs(logprobs.is_some());
    Ok((reply, parameters.stream, jobs, events))
}

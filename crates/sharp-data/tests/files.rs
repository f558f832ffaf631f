//! Files good and bad: what becomes of them, and what is said about the bad ones.

use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use sharp_data::{Chat, DataSpec, Document, Documents, Shots, Task, View, read, read_texts};
use sharp_schema::Side;
use tempfile::TempDir;

struct Dir(TempDir);

impl Dir {
    fn new() -> Dir {
        Dir(TempDir::new().unwrap())
    }
    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn gz(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    out.write_all(bytes.as_ref()).unwrap();
    out.finish().unwrap()
}

fn texts(path: &Path, view: View) -> Vec<String> {
    let spec = DataSpec::new(path).with_view(view);
    read(&spec, None).unwrap().iter().map(Document::full_text).collect()
}

fn error(path: &Path, view: View) -> String {
    read(&DataSpec::new(path).with_view(view), None).unwrap_err().to_string()
}

#[test]
fn paragraphs_of_text() {
    let dir = Dir::new();
    let path = dir.file("a.txt", "\u{feff}one\ntwo  \n\n \t\n\nthree\r\n\r\nfour");
    assert_eq!(texts(&path, View::Auto), ["one\ntwo", "three", "four"]);
    let path = dir.file("b.md.gz", gz("# Title\n\ntext\n"));
    assert_eq!(texts(&path, View::Text), ["# Title", "text"]);
    // Found by its first bytes, whatever its name says.
    let path = dir.file("c.txt", gz("x\n\ny"));
    assert_eq!(texts(&path, View::Auto), ["x", "y"]);
    let spec = DataSpec::new(&path).with_limit(Some(1));
    assert_eq!(read(&spec, None).unwrap(), [Document::text("x")]);
}

#[test]
fn articles_of_wikitext() {
    let dir = Dir::new();
    let path = dir.file("w.tokens", " \n = First = \n \n a \n \n = = Part = = \n b \n = Second = \n c \n");
    assert_eq!(texts(&path, View::Auto), [" = First =\n\n a\n\n = = Part = =\n b", " = Second =\n c"]);
}

#[test]
fn whole_texts_for_perplexity() {
    let dir = Dir::new();
    let all = |path: &Path| read_texts(&DataSpec::new(path), None, Side::All, 0.2, 1).unwrap();
    let text = " = T = \n \n a <unk> \n\n\n b";
    assert_eq!(all(&dir.file("w.tokens", text)), [text]);
    assert_eq!(all(&dir.file("crlf.txt", "a\r\nb\n")), ["a\nb\n"]);
    let path = dir.file("x.jsonl", "{\"text\": \"a\"}\n{\"prompt\": \"b\", \"completion\": \"c\"}\n");
    assert_eq!(all(&path), ["a", "bc"]);
    // A side of a text file holds documents.
    let path = dir.file("blocks.txt", "one\n\ntwo\n\n\nthree\n");
    let side = |side| read_texts(&DataSpec::new(&path), None, side, 0.4, 1).unwrap();
    let mut sides = [side(Side::Train), side(Side::Validation), side(Side::HeldOut)].concat();
    sides.sort_unstable();
    assert_eq!(sides, ["one", "three", "two"]);
    let said = read_texts(&DataSpec::new(dir.file("none.txt", "\r\n")), None, Side::Train, 0.2, 1);
    assert!(said.unwrap_err().to_string().contains("none.txt"));
}

#[test]
fn rows_of_json() {
    let dir = Dir::new();
    let lines = r#"{"text": "plain", "id": 7}

{"prompt": "2+2=", "completion": "4", "text": "ignored"}
{"text": " "}
"#;
    for (name, bytes) in [("a.jsonl", lines.as_bytes().to_vec()), ("a.jsonl.gz", gz(lines))] {
        let docs = read(&DataSpec::new(dir.file(name, bytes)), None).unwrap();
        assert_eq!(docs, [Document::text("plain"), Document::pair("2+2=", "4")]);
    }
    let path = dir.file("b.jsonl", r#"{"prompt": "2+2=", "completion": "4"}"#);
    assert_eq!(read(&DataSpec::new(&path).with_view(View::Text), None).unwrap(), [Document::text("2+2=4")]);
    let path = dir.file("c.jsonl", "{\"passage\": \"p\"}\n{\"passage\": \"q\"}\n{\"passage\": \"p\"}\n");
    assert_eq!(texts(&path, View::Passage), ["p", "q"]);
}

/// Passages of one article overlap, so that a split may not part them; nor a question from its passage's
/// article.
#[test]
fn passages_of_one_article_are_one_group() {
    let dir = Dir::new();
    let rows = ["Persian language -- Old.", "Persian language -- New.", "Iran -- Old."]
        .map(|passage| format!("{{\"passage\": \"{passage}\"}}\n"));
    let path = dir.file("d.jsonl", rows.concat());
    let docs = read(&DataSpec::new(&path).with_view(View::Passage), None).unwrap();
    let [old, new, iran] = &docs[..] else { panic!("{docs:?}") };
    assert!(old.group.is_some() && old.group == new.group && old.group != iran.group);

    let query = "Persian language -- Older.\nQuestion: is it old?\nAnswer:";
    let request = serde_json::json!({
        "request_type": "loglikelihood", "idx": 0, "doc_id": 0, "label": 0,
        "doc": {"query": query, "choices": ["yes", "no"], "gold": 0},
        "request": {"context": query, "continuation": " yes"},
    });
    let path = dir.file("e.jsonl", format!("{request}\n"));
    for view in [View::Auto, View::Text, View::Passage] {
        let docs = read(&DataSpec::new(&path).with_view(view), None).unwrap();
        assert_eq!(docs.first().and_then(|d| d.group), old.group, "{view:?}");
    }
}

#[test]
fn conversations_need_a_template() {
    let dir = Dir::new();
    let path = dir.file(
        "m.jsonl",
        r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
{"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]}
"#,
    );
    let said = error(&path, View::Auto);
    assert!(said.contains("m.jsonl:1:") && said.contains("chat template"), "{said}");
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}\
                    {% if add_generation_prompt %}<assistant>{% endif %}";
    let config = serde_json::json!({
        "eos_token": {"content": "</s>", "lstrip": false},
        "chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}],
    });
    let chat = Chat::from_tokenizer_config(&config.to_string()).unwrap().unwrap();
    let docs = read(&DataSpec::new(&path), Some(&chat)).unwrap();
    let want = Document { chat: true, ..Document::pair("<user>q</s><assistant>", "a</s>") };
    assert_eq!(docs, [want.clone(), want]);
    assert!(Chat::from_tokenizer_config("{}").unwrap().is_none());
    assert!(Chat::from_tokenizer_config("{\"chat_template\": 3}").is_err());
    assert!(Chat::load(dir.0.path()).unwrap().is_none());
    dir.file("chat_template.jinja", template);
    dir.file("tokenizer_config.json", config.to_string());
    let chat = Chat::load(dir.0.path()).unwrap().unwrap();
    assert_eq!(read(&DataSpec::new(&path), Some(&chat)).unwrap(), docs);
}

#[test]
fn bad_files_are_named_with_line_and_reason() {
    let dir = Dir::new();
    let cases: Vec<(&str, Vec<u8>, View, &[&str])> = vec![
        ("e.jsonl", b"".into(), View::Auto, &["e.jsonl: is empty"]),
        ("blank.txt", b"\n \n\n".into(), View::Auto, &["holds no documents"]),
        (
            "j.jsonl",
            b"{\"text\": \"a\"}\n{\"text\": \"b\"\n".into(),
            View::Auto,
            &["j.jsonl:2:", "not JSON", "column"],
        ),
        ("l.jsonl", b"[1, 2]".into(), View::Auto, &["l.jsonl:1:", "a JSON object", "a list"]),
        ("k.jsonl", b"{\"txt\": \"a\"}".into(), View::Auto, &["k.jsonl:1:", "\"text\"", "found \"txt\""]),
        ("n.jsonl", b"{\"text\": 3}".into(), View::Auto, &["n.jsonl:1:", "\"text\" is a number"]),
        ("p.jsonl", b"{\"prompt\": \"a\"}".into(), View::Completion, &["\"completion\" is missing"]),
        (
            "q.jsonl",
            b"{\"prompt\": \"a\", \"completion\": \"\"}".into(),
            View::Auto,
            &["\"completion\" is empty"],
        ),
        ("r.jsonl", b"{\"prompt\": [], \"completion\": \"x\"}".into(), View::Auto, &["a list and a string"]),
        ("t.jsonl", b"{\"prompt\": \"a\"}".into(), View::Passage, &["\"passage\" is missing"]),
        ("u.txt", b"good\nba\xffd\n".into(), View::Auto, &["u.txt:2:", "not UTF-8", "position 3"]),
        ("u16.txt", b"\xff\xfea\0b\0".into(), View::Auto, &["u16.txt:1:", "UTF-16"]),
        ("v.txt", b"words".into(), View::Messages, &["plain text", "messages"]),
        ("z.jsonl.gz", b"{\"text\": \"a\"}".into(), View::Auto, &["named .gz"]),
        ("deep.jsonl", "[".repeat(100_000).into(), View::Auto, &["deep.jsonl:1:", "recursion"]),
    ];
    for (name, bytes, view, want) in cases {
        let said = error(&dir.file(name, bytes), view);
        for part in want {
            assert!(said.contains(part), "{name}: expected {part:?} in {said:?}");
        }
    }
    assert!(error(dir.0.path(), View::Auto).contains("folder"));
    assert!(error(&dir.0.path().join("none.txt"), View::Auto).contains("none.txt"));
}

#[test]
fn a_cut_or_damaged_gzip_is_an_error_wherever_it_happens() {
    let dir = Dir::new();
    let lines: String =
        (0..500).map(|i| format!("{{\"text\": \"number {i}, {}\"}}\n", i * i * 7919)).collect();
    let whole = gz(&lines);
    for cut in [3, 9, 11, whole.len() / 2, whole.len() - 9, whole.len() - 4, whole.len() - 1] {
        let said = error(&dir.file("cut.jsonl.gz", &whole[..cut]), View::Auto);
        assert!(said.contains("cut.jsonl.gz:") && said.contains("cut off"), "{cut}: {said}");
    }
    let mut damaged = whole.clone();
    let at = damaged.len() - 6; // in the checksum
    damaged[at] ^= 1;
    let said = error(&dir.file("bad.jsonl.gz", &damaged), View::Auto);
    assert!(said.contains("damaged"), "{said}");
}

#[test]
fn a_giant_line_is_refused_before_it_fills_the_memory() {
    let dir = Dir::new();
    // 70 MB of one line that compress to 70 kB.
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(b"{\"text\": \"").unwrap();
    let block = vec![b'a'; 1 << 20];
    for _ in 0..70 {
        out.write_all(&block).unwrap();
    }
    let said = error(&dir.file("giant.jsonl.gz", out.finish().unwrap()), View::Auto);
    assert!(said.contains("giant.jsonl.gz:1:") && said.contains("longer than 67108864 bytes"), "{said}");
}

#[test]
fn nothing_follows_an_error() {
    let dir = Dir::new();
    let path = dir.file("x.jsonl", "{\"text\": \"a\"}\nnonsense\n{\"text\": \"b\"}\n");
    let mut docs = Documents::open(&DataSpec::new(path), None).unwrap();
    assert!(docs.next().unwrap().is_ok());
    assert!(docs.next().unwrap().is_err());
    assert!(docs.next().is_none());
}

fn row(doc_id: u64, idx: usize, context: &str, continuation: &str, doc: &str, label: &str) -> String {
    format!(
        "{{\"doc_id\": {doc_id}, \"idx\": {idx}, \"doc\": {doc}, \"label\": {label}, \
         \"request\": {{\"context\": {}, \"continuation\": {}}}}}\n",
        serde_json::json!(context),
        serde_json::json!(continuation)
    )
}

fn boolq(doc_id: u64, passage: &str, gold: &str) -> String {
    let query = format!("{passage}\nQuestion: is it {doc_id}?\nAnswer:");
    let doc = serde_json::json!({"query": query, "choices": ["yes", "no"]}).to_string();
    let doc = format!("{}, \"gold\": {gold}}}", doc.trim_end_matches('}'));
    ["yes", "no"]
        .iter()
        .enumerate()
        .map(|(i, c)| row(doc_id, i, &format!("An example.\n\n{query}"), &format!(" {c}"), &doc, "0"))
        .collect()
}

#[test]
fn evaluation_requests_as_documents() {
    let dir = Dir::new();
    let lines = boolq(0, "A passage.", "1") + &boolq(1, "B", "0") + &boolq(2, "A  passage.", "\"1\"");
    let repeats = lines.replace("\"doc_id\": ", "\"doc_id\": 100000");
    let path = dir.file("requests.jsonl.gz", gz(lines + &repeats));
    let docs = read(&DataSpec::new(&path), None).unwrap();
    assert_eq!(docs.len(), 3);
    assert_eq!(docs[0].prompt, "A passage.\nQuestion: is it 0?\nAnswer:");
    assert_eq!((docs[0].completion.as_str(), docs[1].completion.as_str()), (" no", " yes"));
    // Both ask about one passage.
    assert_eq!(docs[0].split_key(), docs[2].split_key());
    assert_ne!(docs[0].split_key(), docs[1].split_key());
    assert_eq!(texts(&path, View::Passage), ["A passage.", "B"]);
    assert_eq!(texts(&path, View::Text)[1], "B\nQuestion: is it 1?\nAnswer: yes");
    assert!(error(&path, View::Messages).contains("no messages"));

    let doc = r#"{"sentence": "Ann beat Eve because _ was fast.", "option1": "Ann", "option2": "Eve", "answer": "2"}"#;
    let lines = row(0, 0, "Few shots.\n\nAnn beat Eve because Ann", " was fast.", doc, "1")
        + &row(0, 1, "Few shots.\n\nAnn beat Eve because Eve", " was fast.", doc, "1");
    let path = dir.file("wino.jsonl", &lines);
    let docs = read(&DataSpec::new(&path), None).unwrap();
    assert_eq!(
        (docs[0].prompt.as_str(), docs[0].completion.as_str()),
        ("Ann beat Eve because Eve", " was fast.")
    );
    let stored = Task::load(&path, "winogrande", None).unwrap();
    assert_eq!(stored.questions[0].choices[1].context, "Few shots.\n\nAnn beat Eve because Eve");
    let zero = Task::load_with(&path, "winogrande", None, Shots::Zero).unwrap();
    let question = &zero.questions[0];
    assert_eq!(question.gold, 1);
    assert_eq!(question.choices[0].context, "Ann beat Eve because Ann");
    assert_eq!(question.choices[0].continuation, question.choices[1].continuation);
}

#[test]
fn tasks() {
    let dir = Dir::new();
    let lines = boolq(0, "A", "1") + &boolq(1, "B", "0");
    let path =
        dir.file("requests.jsonl", lines.clone() + &lines.replace("\"doc_id\": ", "\"doc_id\": 100000"));
    let task = Task::load(&path, "boolq", None).unwrap();
    assert_eq!((task.questions.len(), task.questions[0].gold, task.questions[1].gold), (2, 1, 0));
    assert_eq!(task.questions[0].choices[0].continuation, " yes");
    assert_eq!((task.questions[0].choices[0].chars(), task.questions[0].choices[0].bytes()), (3, 3));
    let zero = Task::load_with(&path, "boolq", Some(1), Shots::Zero).unwrap();
    assert_eq!(zero.questions.len(), 1);
    assert_eq!(zero.questions[0].choices[0].context, "A\nQuestion: is it 0?\nAnswer:");
    assert_eq!(Task::name_of(Path::new("a/boolq/rc_0shot/requests.jsonl.gz")).as_deref(), Some("boolq"));

    let rows: Vec<&str> = lines.lines().collect();
    for (bad, want) in [
        (vec![rows[1], rows[0]], "choice 1 of question 0 comes where choice 0"),
        (vec![rows[0], rows[1], rows[2], rows[3], rows[0]], "do not lie together"),
        (vec![rows[0]], "the right answer is number 1, but there are 1 choices"),
        (vec!["{\"text\": \"a\"}"], "expected an evaluation request"),
        (vec!["{\"doc\": {}, \"doc_id\": \"x\", \"request\": {}}"], "\"doc_id\" is not a whole number"),
        (vec!["{\"doc\": {}, \"doc_id\": 0, \"request\": {}}"], "\"request.context\" is missing"),
        (vec!["{\"doc\": {}, \"doc_id\": 0, \"request\": {\"context\": 1}}"], "is not a string"),
        (
            vec![
                "{\"doc_id\": 1000000, \"doc\": {\"gold\": 0}, \"request\": {\"context\": \"a\", \"continuation\": \"b\"}}",
            ],
            "holds no questions",
        ),
    ] {
        let said = Task::load(&dir.file("bad.jsonl", bad.join("\n")), "t", None).unwrap_err().to_string();
        assert!(said.contains("bad.jsonl:") && said.contains(want), "expected {want:?} in {said:?}");
    }
    let disagree = [rows[0].to_owned(), rows[1].replace("\"gold\": 1", "\"gold\": 0")].join("\n");
    let said = Task::load(&dir.file("bad.jsonl", disagree), "t", None).unwrap_err().to_string();
    assert!(said.contains("bad.jsonl:2:") && said.contains("right answer 0 here and 1 before"), "{said}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_bytes_make_a_reader_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        name in prop_oneof![Just("a.jsonl"), Just("a.jsonl.gz"), Just("a.txt"), Just("a.tokens")],
        zipped: bool,
    ) {
        let dir = Dir::new();
        let path = dir.file(name, if zipped { gz(&bytes) } else { bytes });
        for view in [View::Auto, View::Text, View::Completion, View::Passage] {
            let _ = read(&DataSpec::new(&path).with_view(view), None);
        }
        let _ = Task::load(&path, "t", None);
    }

    #[test]
    fn no_json_makes_a_reader_panic(
        doc_id in prop_oneof![Just("0"), Just("-1"), Just("\"a\""), Just("18446744073709551615")],
        idx in prop_oneof![Just("0"), Just("1"), Just("null"), Just("18446744073709551615")],
        gold in prop_oneof![Just("0"), Just("9"), Just("\"Z\""), Just("[]"), Just("18446744073709551615")],
        doc in prop_oneof![Just("{}"), Just("3"), Just("{\"sentence\": \"_\", \"option1\": \"é\", \"option2\": \"\"}"),
            Just("{\"query\": \"\\nQuestion:\", \"choices\": [1]}"), Just("{\"query\": \"\", \"choices\": []}")],
    ) {
        let dir = Dir::new();
        let line = format!("{{\"doc_id\": {doc_id}, \"idx\": {idx}, \"label\": {gold}, \"doc\": {doc}, \
            \"request\": {{\"context\": \"c\", \"continuation\": \" d\"}}}}");
        let path = dir.file("a.jsonl", line);
        for view in [View::Auto, View::Text, View::Completion, View::Passage] {
            let _ = read(&DataSpec::new(&path).with_view(view), None);
        }
        let _ = Task::load(&path, "t", None);
        let _ = Task::load_with(&path, "t", None, Shots::Zero);
    }
}

#[test]
fn a_small_file_that_unpacks_to_a_large_one_is_refused_on_the_way() {
    let dir = Dir::new();
    let line = format!("{{\"text\": \"{}\"}}\n", "a".repeat(100_000));
    let bomb = gz(line.repeat((100 << 20) / line.len()));
    assert!(bomb.len() < 200_000, "{} bytes", bomb.len());
    let bomb = dir.file("bomb.jsonl.gz", bomb);
    let said = error(&bomb, View::Auto);
    assert!(said.contains("bomb.jsonl.gz:") && said.contains("128 times its length"), "{said}");
    // The first rows can be had.
    let some = DataSpec::new(&bomb).with_limit(Some(3));
    assert_eq!(read(&some, None).unwrap().len(), 3);
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let dir = Dir::new();
    let pipe = dir.0.path().join("rows.jsonl");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let said = error(&pipe, View::Auto);
    assert!(said.contains("rows.jsonl") && said.contains("not a regular file"), "{said}");
}

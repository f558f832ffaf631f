"""Small Parquet files and the same rows as JSON lines.

Each NAME.parquet is written by pyarrow, NAME.jsonl by Python's json from the very rows: a reader must make the same documents of both. The cases
go through what writers do differently: compression, versions of pages, encodings, dictionaries, sizes of pages and row groups, nesting.
brotli, delta and lengths have no JSON: their compression or encoding is refused, as is
the length of what giant holds. Texts are written here.

Usage: python gen.py     (needs pyarrow)
"""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).parent


def texts(n):
    words = "layer share recover n\u00e4hern \u4f60\u597d \U0001f600 weights \"quoted\" back\\slash".split(" ")
    return [" ".join(words[(i * k) % len(words)] for k in range(i % 9)) + ("\nline" if i % 4 == 0 else "") for i in range(n)]


def message(role, content):
    return {"role": role, "content": content}


def talk(i):
    turns = [message("user", f"What is {i}?"), message("assistant", f"It is {i}.")]
    return ([message("system", "Be brief.")] if i % 2 else []) + turns * (1 + i % 3)


MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("name", pa.string())]))
REQUEST = [
    ("doc_id", pa.int64()), ("idx", pa.int32()), ("label", pa.string()),
    ("request", pa.struct([("context", pa.string()), ("continuation", pa.string())])),
    ("doc", pa.struct([("query", pa.string()), ("choices", pa.list_(pa.string())), ("gold", pa.int64())])),
]


def request(i, k):
    query = f"Passage {i // 2}.\nQuestion: is it {i}?\nAnswer:"
    return {"doc_id": i, "idx": k, "label": "0", "request": {"context": query, "continuation": [" yes", " no"][k]},
            "doc": {"query": query, "choices": ["yes", "no"], "gold": i % 2}}


# name: (columns, rows, how it is written)
CASES = {
    "text_snappy": ([("id", pa.int64()), ("text", pa.string())], [{"id": i, "text": t} for i, t in enumerate(texts(90))],
                    dict(compression="snappy", row_group_size=25)),
    "text_plain": ([("text", pa.large_string())], [{"text": t} for t in texts(40)],
                   dict(compression="none", use_dictionary=False, data_page_size=64, write_batch_size=4)),
    "text_large": ([("text", pa.string()), ("score", pa.float64())], [{"text": t, "score": len(t) / 7} for t in texts(40)],
                   dict(compression="gzip", use_dictionary=False, data_page_version="2.0")),
    "text_bytes": ([("text", pa.binary())], [{"text": t.encode()} for t in texts(12)], dict(compression="snappy")),
    "pairs_zstd": ([("prompt", pa.string()), ("completion", pa.string()), ("text", pa.string())],
                   [{"prompt": f"{i}+1=", "completion": str(i + 1), "text": None} if i % 3 else
                    {"prompt": None, "completion": None, "text": f"row {i}"} for i in range(30)],
                   dict(compression="zstd", data_page_version="2.0", row_group_size=11)),
    "messages_gzip": ([("messages", MESSAGES), ("source", pa.string())],
                      [{"messages": [dict(m, name=None) for m in talk(i)], "source": "made"} for i in range(20)],
                      dict(compression="gzip", row_group_size=6)),
    "messages_zstd": ([("prompt", MESSAGES), ("completion", MESSAGES)],
                      [{"prompt": [dict(m, name=None) for m in talk(i)[:-1]], "completion": [dict(talk(i)[-1], name="a")]} for i in range(20)],
                      dict(compression="zstd", data_page_version="2.0", data_page_size=32, write_batch_size=3)),
    "requests": (REQUEST, [request(i, k) for i in range(8) for k in range(2)], dict(compression="snappy")),
    "null_text": ([("text", pa.string())], [{"text": "a"}, {"text": None}], dict(compression="snappy")),
}


def plain(row):
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in row.items()}


for name, (columns, rows, how) in CASES.items():
    table = pa.Table.from_pylist(rows, schema=pa.schema(columns))
    pq.write_table(table, HERE / f"{name}.parquet", **how)
    lines = "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows)
    (HERE / f"{name}.jsonl").write_text(lines, encoding="utf-8")
pq.write_table(pa.table({"text": ["a"]}), HERE / "brotli.parquet", compression="brotli")
for name, encoding in [("delta", "DELTA_BYTE_ARRAY"), ("lengths", "DELTA_LENGTH_BYTE_ARRAY")]:
    pq.write_table(pa.table({"text": ["a", "b"]}), HERE / f"{name}.parquet", use_dictionary=False, column_encoding={"text": encoding})
# One text of 70 MB in a few KB.
pq.write_table(pa.table({"text": ["a" * (70 << 20)]}), HERE / "giant.parquet", compression="zstd", write_statistics=False, use_dictionary=False,
               store_schema=False)
pq.write_table(pa.table({"txt": ["a"], "Text": ["b"], "score": [1.0]}), HERE / "other_columns.parquet")

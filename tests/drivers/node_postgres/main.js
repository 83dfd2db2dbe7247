// What a service on node-postgres does, each part told in one line: the test compares direct with proxied.

import { Readable, Writable } from "node:stream";
import { pipeline } from "node:stream/promises";
import pg from "pg";
import { from as copyFrom, to as copyTo } from "pg-copy-streams";
import Cursor from "pg-cursor";

const session = Number(process.env.SESSION); // stands in the column `session` of this programme's rows
const client = new pg.Client(); // PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE
const notices = [];
client.on("notice", (notice) => notices.push([notice.severity, notice.message]));

const told = ({ severity, code, message, detail, hint, position, constraint }) =>
  [severity, code, message, detail, hint, position, constraint];
const query = (text, values = [], more = {}) =>
  client.query({ text, values, ...more }).then((result) => [result.command, result.rowCount, result.rows], told);
const balance = () => query("SELECT sum(balance) FROM account WHERE session = $1", [session]);
const collected = async (stream) => {
  const chunks = [];
  await pipeline(stream, new Writable({ write: (chunk, _, done) => (chunks.push(chunk), done()) }));
  return Buffer.concat(chunks).toString();
};

const parts = {
  async simple() {
    const several = await client.query("SELECT 1 AS a; SELECT 'two' AS b; INSERT INTO account VALUES" +
      ` (${session}, 100, 'simple', 1)`);
    return [several.map((result) => [result.command, result.rowCount, result.rows]),
      await query("SELECT owner FROM account WHERE session = $1 AND id = 100", [session]),
      await client.query("").then((result) => result.rows, told)];
  },

  async prepared() {
    const answers = [];
    for (let id = 1; id < 12; id++)
      answers.push(await query("SELECT owner, $3::text AS word FROM account WHERE session = $1 AND id = $2",
        [session, id, "é"], { name: "by id" }));
    answers.push(await query("SELECT nope FROM account", [], { name: "broken" }));
    answers.push(await query("SELECT 1 AS one", [], { name: "broken" }));
    return answers;
  },

  async types() {
    const row = [session, 1, { a: [1, null, "é"] }, ["x", null, 'quote " and , comma'],
      Buffer.alloc(100_000, Buffer.from([0, 1, 255])), new Date("2024-02-29T12:30:15.123Z"), "élan", 0.1 + 0.2,
      `00000000-0000-0000-0000-00000000000${session}`, "[1,9)"];
    await client.query("DELETE FROM document WHERE session = $1", [session]);
    const inserted = await query("INSERT INTO document (session, id, body, tags, blob, written, feeling, ratio," +
      " token, span) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)", row);
    const all = "SELECT *, md5(blob) FROM document WHERE session = $1";
    return [inserted, await query(all, [session]), await query(all, [session], { rowMode: "array" }),
      await query("SELECT $1::int + 1 AS n, $2::text AS t, true AS b", [session, "x"], { binary: true })];
  },

  async transactions() {
    const insert = (id) => query("INSERT INTO account VALUES ($1, $2, 'transacted', 1)", [session, id]);
    const answers = [];
    for (const step of [() => query("BEGIN ISOLATION LEVEL REPEATABLE READ"), () => insert(500),
      () => query("SAVEPOINT here"), () => insert(500), () => query("SELECT 1"),
      () => query("ROLLBACK TO here"), () => query("SHOW transaction_isolation"), () => insert(501),
      () => query("COMMIT"), balance, () => query("BEGIN"), () => insert(502), () => query("ROLLBACK"), balance])
      answers.push(await step());
    return answers;
  },

  // All in one go: node-postgres queues them, or sends all where it pipelines.
  async queued() {
    const asked = [...Array(30).keys()].map((n) =>
      n === 11 ? query("SELECT 1 / 0") : query("SELECT $1::int AS n", [n]));
    return Promise.all(asked);
  },

  async cursors() {
    const answers = [];
    await client.query("BEGIN");
    const cursor = client.query(new Cursor("SELECT n FROM generate_series(1, $1::int) n", [40]));
    for (let rows = await cursor.read(7); rows.length; rows = await cursor.read(7))
      answers.push(rows.map((row) => row.n));
    await cursor.close();
    const left = client.query(new Cursor("SELECT 1 FROM generate_series(1, 1000)"));
    answers.push((await left.read(3)).length);
    await left.close();
    await client.query("COMMIT");
    return answers;
  },

  async copies() {
    const into = (lines) => pipeline(Readable.from(lines), client.query(copyFrom("COPY account FROM STDIN")))
      .then(() => "copied", told);
    const lines = (first, count) => [...Array(count).keys()].map((n) => `${session}\t${first + n}\tcopied\t${n}\n`);
    const answers = [await into(lines(1000, 3000)), await into(lines(1, 3000)), await into(["not a number\n"])];
    const out = `COPY (SELECT * FROM account WHERE session = ${session} ORDER BY id) TO STDOUT`;
    answers.push(await collected(client.query(copyTo(out))));
    return [...answers, await balance()];
  },

  async listened() {
    const channel = `node_${session}`;
    const news = new Promise((resolve) => client.once("notification", resolve));
    await client.query(`LISTEN ${channel}`);
    await client.query("SELECT pg_notify($1, 'hello')", [channel]);
    const { channel: where, payload } = await news;
    await client.query("UNLISTEN *");
    return [where, payload];
  },

  async settings() {
    const answers = [];
    for (const sql of ["SET app.tenant_id = '7'", "SHOW app.tenant_id", "SET TIME ZONE 'Asia/Tokyo'",
      "SELECT timestamptz '2024-02-29 12:00Z'::text", "RESET TIME ZONE", "RESET app.tenant_id"])
      answers.push(await query(sql));
    return answers;
  },

  async refused() {
    const answers = [];
    for (const sql of ["SELEC 1", "SELECT nope FROM account", "SELECT * FROM nowhere", "SELECT 'x'::int",
      "INSERT INTO account VALUES (-1, 1, NULL, 1)", "INSERT INTO account VALUES (-1, 1, 'x', -5)",
      "DO $$ BEGIN RAISE EXCEPTION 'own words' USING ERRCODE = 'PG001', HINT = 'a hint'; END $$"])
      answers.push(await query(sql), await client.query(sql).catch(told));
    answers.push(await query("SELECT $1::int", ["not a number"]), await query("SELECT announce($1)", ["hello"]));
    return [...answers, notices];
  },

  async timedOut() {
    await client.query("SET statement_timeout = 50");
    const answers = [await query("SELECT pg_sleep(60)"), await query("RESET statement_timeout")];
    return [...answers, await query("SELECT 'alive' AS state")];
  },
};

await client.connect();
for (const [name, part] of Object.entries(parts)) console.log(name, JSON.stringify(await part()));
await client.end();

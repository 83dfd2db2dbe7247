//! What a service on tokio-postgres does, each part told in one line: the test compares direct with proxied.

use std::env::var;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{future, SinkExt, StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Error, IsolationLevel, NoTls, Row, SimpleQueryMessage};

type Answers = Result<Vec<String>, Error>;

fn told(error: &Error) -> String {
    match error.as_db_error() {
        Some(refused) => format!(
            "{} {} {} {:?} {:?} {:?} {:?}",
            refused.severity(),
            refused.code().code(),
            refused.message(),
            refused.detail(),
            refused.hint(),
            refused.constraint(),
            refused.position(),
        ),
        None => error.to_string(),
    }
}

fn outcome<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    result.map_or_else(|error| told(&error), |value| format!("{value:?}"))
}

/// The programme's share of the tables: its rows have this number in the column `session`.
fn session() -> i32 {
    var("SESSION").unwrap().parse().unwrap()
}

async fn balance(client: &Client) -> Result<String, Error> {
    let row = client
        .query_one("SELECT sum(balance)::text FROM account WHERE session = $1", &[&session()])
        .await?;
    Ok(row.get(0))
}

async fn simple(client: &Client) -> Answers {
    let mut answers = Vec::new();
    for message in client.simple_query("SELECT 1 AS a, NULL; SELECT 'two'; UPDATE account SET id = id WHERE false").await? {
        answers.push(match message {
            SimpleQueryMessage::Row(row) => format!("{:?} {:?}", row.get(0), row.columns()[0].name()),
            SimpleQueryMessage::CommandComplete(count) => count.to_string(),
            other => format!("{other:?}"),
        });
    }
    answers.push(outcome(client.batch_execute("SELECT 1; SELECT 1 / 0; SELECT 2").await));
    Ok(answers)
}

async fn prepared(client: &Client) -> Answers {
    let mut answers = Vec::new();
    for _ in 0..2 {
        let statement = client
            .prepare_typed("SELECT owner, $3 FROM account WHERE session = $1 AND id = $2", &[Type::INT4, Type::INT4, Type::TEXT])
            .await?;
        answers.push(format!("{:?} {:?}", statement.params(), statement.columns()));
        for id in 1..12 {
            let row = client.query_one(&statement, &[&session(), &id, &"é"]).await?;
            answers.push(format!("{} {}", row.get::<_, &str>(0), row.get::<_, &str>(1)));
        }
    } // dropping a statement sends its Close
    answers.push(outcome(client.prepare("SELECT nope FROM account").await.map(|_| ())));
    answers.push(outcome(client.query_typed("SELECT $1", &[(&7_i32, Type::INT4)]).await.map(|rows| rows.len())));
    Ok(answers)
}

/// Requests that are written before the ones in front of them are answered.
async fn pipelined(client: &Client) -> Answers {
    let numbers: Vec<i32> = (0..40).map(|n| if n == 17 { 0 } else { n + 1 }).collect();
    let statement = client.prepare("SELECT 100 / $1::int").await?;
    let asked = numbers.iter().map(|number| {
        let statement = &statement;
        async move { client.query_one(statement, &[number]).await.map(|row| row.get::<_, i32>(0)) }
    });
    Ok(future::join_all(asked).await.into_iter().map(outcome).collect())
}

async fn types(client: &Client) -> Answers {
    let blob: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
    let written = SystemTime::UNIX_EPOCH + Duration::from_micros(1_709_209_815_123_456);
    let values: [&(dyn ToSql + Sync); 6] =
        [&session(), &vec![Some("x"), None, Some("quote \" and , comma")], &blob, &written, &0.30000000000000004_f64, &"{\"a\": [1, null]}"];
    client.execute("DELETE FROM document WHERE session = $1", &[&session()]).await?;
    let inserted = client
        .execute(
            "INSERT INTO document (session, id, tags, blob, written, ratio, body, feeling, span)\
             VALUES ($1, 1, $2, $3, $4, $5, $6::text::jsonb, 'élan', '[1,9)')",
            &values,
        )
        .await?;
    let row = client
        .query_one("SELECT tags, blob, written, ratio, body::text, feeling::text, span::text FROM document WHERE session = $1", &[&session()])
        .await?;
    Ok(vec![
        inserted.to_string(),
        format!("{:?}", row.get::<_, Vec<Option<String>>>(0)),
        (row.get::<_, Vec<u8>>(1) == blob).to_string(),
        (row.get::<_, SystemTime>(2) == written).to_string(),
        format!("{:?} {:?} {:?} {:?}", row.get::<_, f64>(3), row.get::<_, &str>(4), row.get::<_, &str>(5), row.get::<_, &str>(6)),
    ])
}

async fn transactions(client: &mut Client) -> Answers {
    let insert = "INSERT INTO account VALUES ($1, $2, 'transacted', 1)";
    let mut answers = Vec::new();
    let mut outer = client.build_transaction().isolation_level(IsolationLevel::Serializable).start().await?;
    answers.push(outcome(outer.execute(insert, &[&session(), &500]).await));
    let inner = outer.savepoint("here").await?;
    answers.push(outcome(inner.execute(insert, &[&session(), &500]).await));
    answers.push(outcome(inner.query("SELECT 1", &[]).await.map(|rows| rows.len())));
    inner.rollback().await?;
    answers.push(outer.query_one("SHOW transaction_isolation", &[]).await?.get(0));
    outer.commit().await?;
    answers.push(balance(client).await?);
    let dropped = client.transaction().await?;
    dropped.execute(insert, &[&session(), &501]).await?;
    drop(dropped); // rolled back without waiting
    answers.push(balance(client).await?);
    let reader = client.build_transaction().read_only(true).start().await?;
    answers.push(outcome(reader.execute(insert, &[&session(), &502]).await));
    drop(reader);
    answers.push(balance(client).await?);
    Ok(answers)
}

/// Portals: Execute with a row limit, again and again, beside another statement.
async fn portals(client: &mut Client) -> Answers {
    let mut answers = Vec::new();
    let transaction = client.transaction().await?;
    let portal = transaction.bind("SELECT generate_series(1, 40)", &[]).await?;
    loop {
        let rows: Vec<Row> = transaction.query_portal(&portal, 7).await?;
        answers.push(format!("{:?}", rows.iter().map(|row| row.get::<_, i32>(0)).collect::<Vec<_>>()));
        answers.push(transaction.query_one("SELECT 'between'", &[]).await?.get(0));
        if rows.len() < 7 {
            break;
        }
    }
    transaction.commit().await?;
    Ok(answers)
}

async fn copies(client: &Client) -> Answers {
    let mut answers = Vec::new();
    for first in [1000, 1] {
        let mut sink = Box::pin(client.copy_in("COPY account FROM STDIN").await?);
        for block in 0..30 {
            let lines: String = (0..100).map(|n| format!("{}\t{}\tcopied\t1\n", session(), first + block * 100 + n)).collect();
            sink.send(Bytes::from(lines)).await?;
        }
        answers.push(outcome(sink.as_mut().finish().await));
    }
    let abandoned = client.copy_in::<_, Bytes>("COPY account FROM STDIN").await?;
    drop(abandoned); // CopyFail
    let out = format!("COPY (SELECT * FROM account WHERE session = {} ORDER BY id) TO STDOUT", session());
    let blocks: Vec<Bytes> = client.copy_out(&out).await?.try_collect().await?;
    answers.push(String::from_utf8(blocks.concat()).unwrap());
    answers.push(balance(client).await?);
    Ok(answers)
}

async fn listened(client: &Client, heard: &mut mpsc::UnboundedReceiver<AsyncMessage>) -> Answers {
    client.batch_execute(&format!("LISTEN tokio_{0}; NOTIFY tokio_{0}, 'hello'", session())).await?;
    client.query("SELECT announce('hello')", &[]).await?;
    let mut answers = Vec::new();
    while answers.len() < 2 {
        match heard.recv().await.unwrap() {
            AsyncMessage::Notification(news) => answers.push(format!("{} {}", news.channel(), news.payload())),
            AsyncMessage::Notice(notice) => answers.push(format!("{} {}", notice.severity(), notice.message())),
            _ => {}
        }
    }
    client.batch_execute("UNLISTEN *").await?;
    Ok(answers)
}

async fn refused(client: &Client) -> Answers {
    let mut answers = Vec::new();
    for sql in [
        "SELEC 1", "SELECT nope FROM account", "SELECT * FROM nowhere", "SELECT 1 / 0", "SELECT 'x'::int",
        "INSERT INTO account VALUES (-1, 1, NULL, 1)", "INSERT INTO account VALUES (-1, 1, 'x', -5)",
        "DO $$ BEGIN RAISE EXCEPTION 'own words' USING ERRCODE = 'PG001', HINT = 'a hint'; END $$",
    ] {
        answers.push(outcome(client.execute(sql, &[]).await));
        answers.push(outcome(client.batch_execute(sql).await));
    }
    Ok(answers)
}

/// The statement ends with 57014, the next one runs.
async fn cancelled(client: &Client) -> Answers {
    let cancel = client.cancel_token();
    let sleeping = client.batch_execute("SELECT pg_sleep(60)");
    tokio::pin!(sleeping);
    let error = loop {
        tokio::select! { // a request may come before the statement has begun
            ended = &mut sleeping => break outcome(ended),
            _ = tokio::time::sleep(Duration::from_millis(200)) => cancel.cancel_query(NoTls).await?,
        }
    };
    Ok(vec![error, outcome(client.query("SELECT 1", &[]).await.map(|rows| rows.len()))])
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let (mut client, mut connection) = Config::new()
        .host(var("PGHOST").unwrap())
        .port(var("PGPORT").unwrap().parse().unwrap())
        .user(var("PGUSER").unwrap())
        .password(var("PGPASSWORD").unwrap())
        .dbname(var("PGDATABASE").unwrap())
        .connect(NoTls)
        .await?;
    let (tell, mut heard) = mpsc::unbounded_channel();
    let reading = tokio::spawn(async move {
        let mut messages = futures_util::stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            let _ = tell.send(message);
        }
    });
    println!("simple {:?}", simple(&client).await?);
    println!("prepared {:?}", prepared(&client).await?);
    println!("pipelined {:?}", pipelined(&client).await?);
    println!("types {:?}", types(&client).await?);
    println!("transactions {:?}", transactions(&mut client).await?);
    println!("portals {:?}", portals(&mut client).await?);
    println!("copies {:?}", copies(&client).await?);
    println!("listened {:?}", listened(&client, &mut heard).await?);
    println!("refused {:?}", refused(&client).await?);
    println!("cancelled {:?}", cancelled(&client).await?);
    drop(client);
    reading.await.unwrap();
    Ok(())
}

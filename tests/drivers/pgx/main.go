// What a service on pgx does, each part told in one line: the test compares direct with proxied.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

var (
	ctx     = context.Background()
	session int // stands in the column `session` of this programme's rows
	heard   []string
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func told(err error) string {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return fmt.Sprint(refused.Severity, " ", refused.Code, " ", refused.Message, " ", refused.Detail, " ",
			refused.Hint, " ", refused.Position, " ", refused.ConstraintName)
	}
	return fmt.Sprint(err)
}

func number(connection interface {
	QueryRow(context.Context, string, ...any) pgx.Row
}, sql string, arguments ...any) (n int64) {
	must(connection.QueryRow(ctx, sql, arguments...).Scan(&n))
	return n
}

const balance = "SELECT sum(balance)::bigint FROM account WHERE session = $1"

// Every way pgx has of running a statement; simple protocol means values in text, the others binary.
func modes(connection *pgx.Conn) any {
	var answers []any
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		for id := 1; id < 4; id++ {
			rows, err := connection.Query(ctx, "SELECT owner, id FROM account WHERE session = $1 AND id = $2", mode,
				session, id)
			must(err)
			for rows.Next() {
				values, err := rows.Values()
				must(err)
				answers = append(answers, mode.String(), values, rows.FieldDescriptions()[0].Name)
			}
			answers = append(answers, told(rows.Err()), rows.CommandTag().String())
		}
	}
	return answers
}

func types(connection *pgx.Conn) any {
	var answers []any
	written := time.Date(2024, 2, 29, 12, 30, 15, 123456000, time.UTC)
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeSimpleProtocol} {
		_, err := connection.Exec(ctx, "DELETE FROM document WHERE session = $1", mode, session)
		must(err)
		_, err = connection.Exec(ctx, "INSERT INTO document (session, id, body, tags, blob, written, feeling, ratio, token, span)"+
			" VALUES ($1, 1, $2, $3, $4, $5, $6, $7, $8, $9)", mode, session,
			`{"a": [1, null, "é"]}`, []string{"x", "quote \" and , comma"},
			bytes.Repeat([]byte{0, 1, 255}, 50_000), written, "élan", 0.1+0.2,
			pgtype.UUID{Bytes: [16]byte{15: byte(session)}, Valid: true},
			"[1,9)")
		must(err)
		rows, err := connection.Query(ctx, "SELECT body, tags, md5(blob), length(blob), blob, written AT TIME ZONE 'UTC',"+
			" feeling::text, ratio, token, span FROM document WHERE session = $1", mode, session)
		must(err)
		for rows.Next() {
			values, err := rows.Values()
			must(err)
			answers = append(answers, values)
		}
		must(rows.Err())
	}
	return answers
}

func prepared(connection *pgx.Conn) any {
	var answers []any
	for range 2 {
		described, err := connection.Prepare(ctx, "mine", "SELECT $1::int + 1, $2::text")
		must(err)
		answers = append(answers, described.ParamOIDs, len(described.Fields))
		for n := range 10 {
			var sum int
			var word string
			must(connection.QueryRow(ctx, "mine", n, "é").Scan(&sum, &word))
			answers = append(answers, sum, word)
		}
		must(connection.Deallocate(ctx, "mine"))
	}
	_, err := connection.Prepare(ctx, "broken", "SELECT nope FROM account")
	answers = append(answers, told(err))
	_, err = connection.Prepare(ctx, "broken", "SELECT 1")
	answers = append(answers, told(err))
	must(connection.DeallocateAll(ctx))
	_, err = connection.Exec(ctx, "EXECUTE broken")
	return append(answers, told(err))
}

// A cached statement whose result changes is refused once; pgx prepares it anew.
func changed(connection *pgx.Conn) any {
	var answers []any
	for _, column := range []string{"a int", "b text", "c int"} {
		if column == "a int" {
			_, err := connection.Exec(ctx, fmt.Sprintf("CREATE TABLE changing_%d (%s)", session, column))
			must(err)
		} else {
			_, err := connection.Exec(ctx, fmt.Sprintf("ALTER TABLE changing_%d ADD %s", session, column))
			must(err)
		}
		for range 2 {
			rows, err := connection.Query(ctx, fmt.Sprintf("SELECT * FROM changing_%d", session))
			must(err)
			rows.Close()
			answers = append(answers, len(rows.FieldDescriptions()), told(rows.Err()))
		}
	}
	_, err := connection.Exec(ctx, fmt.Sprintf("DROP TABLE changing_%d", session))
	must(err)
	return answers
}

func batches(connection *pgx.Conn) any {
	var answers []any
	for _, last := range []string{"SELECT 1", "SELECT 1 / 0"} {
		batch := &pgx.Batch{}
		batch.Queue("UPDATE account SET balance = balance + 1 WHERE session = $1", session)
		for n := range 20 {
			batch.Queue("SELECT $1::int * 2", n)
		}
		batch.Queue(last)
		results := connection.SendBatch(ctx, batch)
		tag, err := results.Exec()
		answers = append(answers, tag.String(), told(err))
		for range 21 {
			var n int
			answers = append(answers, told(results.QueryRow().Scan(&n)), n)
		}
		answers = append(answers, told(results.Close()), number(connection, balance, session))
	}
	return answers
}

// Pipeline mode: several Syncs under way, an error in the middle one.
func pipelined(connection *pgx.Conn) any {
	var answers []any
	pipeline := connection.PgConn().StartPipeline(ctx)
	for _, sql := range []string{"SELECT 1", "SELECT 1 / 0", "SELECT 3"} {
		pipeline.SendQueryParams(sql, nil, nil, nil, nil)
		pipeline.SendQueryParams("SELECT 'behind it'", nil, nil, nil, nil)
		must(pipeline.Sync())
	}
	for range 3 {
		for {
			results, err := pipeline.GetResults()
			if err != nil {
				answers = append(answers, told(err))
				continue
			}
			if _, ready := results.(*pgconn.PipelineSync); ready {
				break
			}
			if reader, ok := results.(*pgconn.ResultReader); ok {
				result := reader.Read()
				answers = append(answers, fmt.Sprintf("%s", result.Rows), told(result.Err))
			}
		}
	}
	return append(answers, told(pipeline.Close()))
}

func transactions(connection *pgx.Conn) any {
	var answers []any
	insert := "INSERT INTO account VALUES ($1, $2, 'transacted', 1)"
	must(pgx.BeginFunc(ctx, connection, func(outer pgx.Tx) error {
		_, err := outer.Exec(ctx, insert, session, 500)
		must(err)
		err = pgx.BeginFunc(ctx, outer, func(inner pgx.Tx) error {
			_, err := inner.Exec(ctx, insert, session, 500)
			return err
		})
		answers = append(answers, told(err))
		return pgx.BeginFunc(ctx, outer, func(inner pgx.Tx) error {
			_, err := inner.Exec(ctx, insert, session, 501)
			return err
		})
	}))
	answers = append(answers, number(connection, balance, session))
	rolled, err := connection.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.Serializable, DeferrableMode: pgx.Deferrable})
	must(err)
	var level string
	must(rolled.QueryRow(ctx, "SHOW transaction_isolation").Scan(&level))
	_, err = rolled.Exec(ctx, "DELETE FROM account WHERE session = $1", session)
	must(err)
	must(rolled.Rollback(ctx))
	err = pgx.BeginTxFunc(ctx, connection, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(reader pgx.Tx) error {
		_, err := reader.Exec(ctx, insert, session, 502)
		return err
	})
	return append(answers, level, told(err), number(connection, balance, session))
}

func copies(connection *pgx.Conn) any {
	columns := []string{"session", "id", "owner", "balance"}
	into := func(from, to int) string {
		n, err := connection.CopyFrom(ctx, pgx.Identifier{"account"}, columns,
			pgx.CopyFromSlice(to-from, func(i int) ([]any, error) {
				return []any{session, from + i, "copied " + strconv.Itoa(i), 1}, nil
			}))
		return fmt.Sprint(n, told(err))
	}
	answers := []any{into(1000, 4000), into(1, 3000)} // the second clashes with rows that are there
	var out bytes.Buffer
	tag, err := connection.PgConn().CopyTo(ctx, &out,
		fmt.Sprintf("COPY (SELECT * FROM account WHERE session = %d ORDER BY id) TO STDOUT", session))
	must(err)
	answers = append(answers, tag.String(), out.String())
	tag, err = connection.PgConn().CopyFrom(ctx, strings.NewReader("not a number\n"), "COPY account FROM STDIN")
	return append(answers, tag.String(), told(err), number(connection, balance, session))
}

func cursors(connection *pgx.Conn) any {
	var answers []any
	must(pgx.BeginFunc(ctx, connection, func(transaction pgx.Tx) error {
		_, err := transaction.Exec(ctx, "DECLARE walk SCROLL CURSOR FOR SELECT generate_series(1, 50)")
		must(err)
		for _, fetch := range []string{"FETCH 7 FROM walk", "FETCH BACKWARD 3 FROM walk", "FETCH ALL FROM walk"} {
			rows, err := transaction.Query(ctx, fetch)
			must(err)
			numbers, err := pgx.CollectRows(rows, pgx.RowTo[int32])
			must(err)
			answers = append(answers, numbers)
		}
		return nil
	}))
	return answers
}

func listened(connection *pgx.Conn) any {
	channel := fmt.Sprintf("pgx_%d", session)
	for _, sql := range []string{"LISTEN " + channel, "SELECT pg_notify('" + channel + "', 'hello')"} {
		_, err := connection.Exec(ctx, sql)
		must(err)
	}
	patience, done := context.WithTimeout(ctx, 30*time.Second)
	defer done()
	notice, err := connection.WaitForNotification(patience)
	must(err)
	_, err = connection.Exec(ctx, "UNLISTEN *")
	must(err)
	return []any{notice.Channel, notice.Payload}
}

func refused(connection *pgx.Conn) any {
	var answers []any
	for _, sql := range []string{
		"SELEC 1", "SELECT nope FROM account", "SELECT * FROM nowhere", "SELECT 1 / 0", "SELECT 'x'::int",
		"INSERT INTO account VALUES (-1, 1, NULL, 1)", "INSERT INTO account VALUES (-1, 1, 'x', -5)",
		"DO $$ BEGIN RAISE EXCEPTION 'own words' USING ERRCODE = 'PG001', HINT = 'a hint'; END $$",
	} {
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeSimpleProtocol} {
			_, err := connection.Exec(ctx, sql, mode)
			answers = append(answers, told(err), string(connection.PgConn().TxStatus()))
		}
	}
	must(connection.QueryRow(ctx, "SELECT announce($1)", "hello").Scan(new(int)))
	return append(answers, heard)
}

func cancelled(connection *pgx.Conn) any {
	asked := make(chan error)
	go func() { // the first request may come before the statement has begun
		for {
			select {
			case <-asked:
				asked <- nil
				return
			case <-time.After(20 * time.Millisecond):
				_ = connection.PgConn().CancelRequest(ctx)
			}
		}
	}()
	_, err := connection.Exec(ctx, "SELECT pg_sleep(60)", pgx.QueryExecModeSimpleProtocol)
	asked <- nil
	<-asked
	return []any{told(err)}
}

func main() {
	var err error
	session, err = strconv.Atoi(os.Getenv("SESSION"))
	must(err)
	config, err := pgx.ParseConfig("") // PGHOST, PGPORT, PGUSER, PGPASSWORD, PGDATABASE
	must(err)
	config.OnNotice = func(_ *pgconn.PgConn, notice *pgconn.Notice) { heard = append(heard, notice.Message) }
	connection, err := pgx.ConnectConfig(ctx, config)
	must(err)
	for _, part := range []struct {
		name string
		run  func(*pgx.Conn) any
	}{
		{"modes", modes}, {"types", types}, {"prepared", prepared}, {"changed", changed}, {"batches", batches},
		{"pipelined", pipelined}, {"transactions", transactions}, {"copies", copies}, {"cursors", cursors},
		{"listened", listened}, {"refused", refused}, {"cancelled", cancelled},
	} {
		line, err := json.Marshal(part.run(connection))
		must(err)
		fmt.Printf("%s %s\n", part.name, line)
	}
	must(connection.Close(ctx))
}

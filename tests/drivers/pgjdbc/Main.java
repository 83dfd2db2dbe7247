import java.io.StringReader;
import java.io.StringWriter;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.SQLWarning;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HexFormat;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.CompletableFuture;
import org.postgresql.PGConnection;
import org.postgresql.PGNotification;
import org.postgresql.util.PSQLException;
import org.postgresql.util.ServerErrorMessage;

/** What a service on pgjdbc does, each part told in one line: the test compares direct with proxied. */
public final class Main {
    private static final String BALANCE = "SELECT sum(balance) FROM account WHERE session = ?";

    private final Connection connection;
    private final int session; // stands in the column `session` of this programme's rows

    private interface Part {
        List<Object> run() throws Exception;
    }

    private Main(Connection connection, int session) {
        this.connection = connection;
        this.session = session;
    }

    private static String told(SQLException error) {
        ServerErrorMessage server = error instanceof PSQLException refused ? refused.getServerErrorMessage() : null;
        if (server == null) {
            return error.getSQLState() + " " + error.getMessage();
        }
        return String.join("|", String.valueOf(server.getSeverity()), server.getSQLState(), server.getMessage(),
            String.valueOf(server.getDetail()), String.valueOf(server.getHint()), String.valueOf(server.getConstraint()),
            String.valueOf(server.getPosition()));
    }

    /** Rows as text, after their columns' types; a refusal instead of them. */
    private Object ask(String sql, Object... values) {
        try (PreparedStatement statement = connection.prepareStatement(sql)) {
            for (int n = 0; n < values.length; n++) {
                statement.setObject(n + 1, values[n]);
            }
            return statement.execute() ? rows(statement.getResultSet()) : statement.getUpdateCount();
        } catch (SQLException refused) {
            return told(refused);
        }
    }

    private static List<Object> rows(ResultSet found) throws SQLException {
        List<Object> rows = new ArrayList<>();
        int columns = found.getMetaData().getColumnCount();
        for (int n = 1; n <= columns; n++) {
            rows.add(found.getMetaData().getColumnTypeName(n));
        }
        while (found.next()) {
            for (int n = 1; n <= columns; n++) {
                Object value = found.getObject(n);
                rows.add(value instanceof byte[] bytes ? HexFormat.of().formatHex(bytes) : String.valueOf(value));
            }
        }
        return rows;
    }

    /** From the fifth time on the driver prepares at the server, and takes values in binary. */
    private List<Object> prepared() throws SQLException {
        List<Object> answers = new ArrayList<>();
        try (PreparedStatement statement = connection.prepareStatement(
                "SELECT owner, id, balance, ?::timestamptz AT TIME ZONE 'UTC', ?::float8 FROM account"
                + " WHERE session = ? AND id = ?")) {
            for (int id = 1; id < 13; id++) {
                statement.setString(1, "2024-02-29 12:30:15.123456Z");
                statement.setDouble(2, 0.1 + 0.2);
                statement.setInt(3, session);
                statement.setInt(4, id);
                answers.add(rows(statement.executeQuery()));
            }
        }
        return answers;
    }

    private List<Object> types() throws SQLException {
        List<Object> answers = new ArrayList<>();
        byte[] blob = new byte[100_000];
        for (int n = 0; n < blob.length; n++) {
            blob[n] = (byte) n;
        }
        for (int round = 0; round < 7; round++) {
            answers.add(ask("DELETE FROM document WHERE session = ?", session));
            try (PreparedStatement insert = connection.prepareStatement(
                    "INSERT INTO document (session, id, body, tags, blob, written, feeling, ratio, token, span)"
                    + " VALUES (?, 1, ?::jsonb, ?, ?, ?::timestamptz, ?::mood, ?, ?::uuid, ?::int4range)")) {
                insert.setInt(1, session);
                insert.setString(2, "{\"a\": [1, null, \"é\"]}");
                insert.setArray(3, connection.createArrayOf("text", new String[] {"x", null, "quote \" and , comma"}));
                insert.setBytes(4, blob);
                insert.setString(5, "2024-02-29 12:30:15.123456Z");
                insert.setString(6, "élan");
                insert.setDouble(7, 0.1 + 0.2);
                insert.setString(8, "00000000-0000-0000-0000-00000000000" + session);
                insert.setString(9, "[1,9)");
                answers.add(insert.executeUpdate());
            }
            answers.add(ask("SELECT *, md5(blob) FROM document WHERE session = ?", session));
        }
        return answers;
    }

    private List<Object> changed() {
        List<Object> answers = new ArrayList<>();
        answers.add(ask("CREATE TABLE jdbc_changing_" + session + " (a int)"));
        for (String column : new String[] {"b text", "c int"}) {
            for (int n = 0; n < 8; n++) {
                answers.add(ask("SELECT * FROM jdbc_changing_" + session));
            }
            answers.add(ask("ALTER TABLE jdbc_changing_" + session + " ADD " + column));
        }
        answers.add(ask("SELECT * FROM jdbc_changing_" + session));
        answers.add(ask("DROP TABLE jdbc_changing_" + session));
        return answers;
    }

    private List<Object> batches() throws SQLException {
        List<Object> answers = new ArrayList<>();
        for (int first : new int[] {2000, 2450}) { // the second clashes in its middle
            try (PreparedStatement insert =
                    connection.prepareStatement("INSERT INTO account VALUES (?, ?, 'batched', 1)")) {
                for (int n = 0; n < 500; n++) {
                    insert.setInt(1, session);
                    insert.setInt(2, first == 2450 && n < 50 ? 3000 + n : first + n);
                    insert.addBatch();
                }
                answers.add(Arrays.toString(insert.executeBatch()));
            } catch (java.sql.BatchUpdateException refused) {
                answers.add(Arrays.toString(refused.getUpdateCounts()));
                answers.add(told((SQLException) refused.getCause()));
            }
        }
        answers.add(ask(BALANCE, session));
        return answers;
    }

    private List<Object> transactions() throws SQLException {
        List<Object> answers = new ArrayList<>();
        String insert = "INSERT INTO account VALUES (?, ?, 'transacted', 1)";
        connection.setAutoCommit(false);
        connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
        answers.add(ask(insert, session, 500));
        Savepoint here = connection.setSavepoint("here");
        answers.add(ask(insert, session, 500));
        answers.add(ask("SELECT 1"));
        connection.rollback(here);
        answers.add(ask("SHOW transaction_isolation"));
        connection.releaseSavepoint(here);
        connection.commit();
        connection.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
        answers.add(ask(insert, session, 501));
        connection.rollback();
        connection.setReadOnly(true);
        answers.add(ask(insert, session, 502));
        connection.rollback();
        connection.setReadOnly(false);
        connection.setAutoCommit(true);
        answers.add(ask(BALANCE, session));
        return answers;
    }

    /** A fetch size makes the driver Execute a named portal with a row limit, again and again. */
    private List<Object> cursors() throws SQLException {
        List<Object> answers = new ArrayList<>();
        connection.setAutoCommit(false);
        try (Statement statement = connection.createStatement()) {
            statement.setFetchSize(7);
            answers.add(rows(statement.executeQuery("SELECT generate_series(1, 50)")));
            try (ResultSet left = statement.executeQuery("SELECT generate_series(1, 1000)")) {
                left.next();
                answers.add(left.getInt(1));
                answers.add(ask("SELECT 'between two fetches'"));
            }
        }
        connection.commit();
        connection.setAutoCommit(true);
        return answers;
    }

    private List<Object> copies() throws Exception {
        List<Object> answers = new ArrayList<>();
        var copy = connection.unwrap(PGConnection.class).getCopyAPI();
        for (int first : new int[] {4000, 1}) {
            StringBuilder lines = new StringBuilder();
            for (int n = 0; n < 3000; n++) {
                lines.append(session).append('\t').append(first + n).append("\tcopied\t1\n");
            }
            try {
                answers.add(copy.copyIn("COPY account FROM STDIN", new StringReader(lines.toString())));
            } catch (SQLException refused) {
                answers.add(told(refused));
            }
        }
        StringWriter out = new StringWriter();
        answers.add(copy.copyOut(
            "COPY (SELECT * FROM account WHERE session = " + session + " ORDER BY id) TO STDOUT", out));
        answers.add(out.toString());
        return answers;
    }

    private List<Object> listened() throws SQLException {
        PGConnection news = connection.unwrap(PGConnection.class);
        ask("LISTEN jdbc_" + session);
        ask("SELECT pg_notify(?, 'hello')", "jdbc_" + session);
        PGNotification[] heard = news.getNotifications(30_000);
        ask("UNLISTEN *");
        return List.of(heard.length, heard[0].getName(), heard[0].getParameter());
    }

    private List<Object> refused() throws SQLException {
        List<Object> answers = new ArrayList<>();
        for (String sql : new String[] {
            "SELEC 1", "SELECT nope FROM account", "SELECT * FROM nowhere", "SELECT 1 / 0", "SELECT 'x'::int",
            "INSERT INTO account VALUES (-1, 1, NULL, 1)", "INSERT INTO account VALUES (-1, 1, 'x', -5)",
            "SELECT 1; SELECT 2; SELECT 1 / 0", "",
        }) {
            answers.add(ask(sql));
        }
        try (Statement statement = connection.createStatement()) {
            statement.execute("SELECT announce('hello')");
            SQLWarning warning = statement.getWarnings();
            answers.add(warning.getSQLState() + " " + warning.getMessage());
        }
        return answers;
    }

    /** The driver asks on a second connection; the statement says so, the next one runs. */
    private List<Object> cancelled() throws Exception {
        List<Object> answers = new ArrayList<>();
        try (Statement statement = connection.createStatement()) {
            statement.setQueryTimeout(1);
            CompletableFuture<Object> running = CompletableFuture.supplyAsync(() -> {
                try {
                    return statement.execute("SELECT pg_sleep(60)");
                } catch (SQLException refused) {
                    return told(refused);
                }
            });
            answers.add(running.get());
        }
        answers.add(ask("SELECT 'alive'"));
        return answers;
    }

    private List<Object> settings() throws SQLException {
        List<Object> answers = new ArrayList<>();
        answers.add(ask("SET app.tenant_id = '7'"));
        answers.add(ask("SHOW app.tenant_id"));
        connection.setSchema("pg_catalog");
        answers.add(connection.getSchema());
        connection.setSchema("public");
        answers.add(connection.getMetaData().getColumns(null, "public", "account", null).getMetaData().getColumnCount());
        return answers;
    }

    public static void main(String[] arguments) throws Exception {
        String host = System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("password", System.getenv("PGPASSWORD"));
        properties.setProperty("preferQueryMode", arguments[0]);
        properties.setProperty("gssEncMode", "disable");
        try (Connection connection = DriverManager.getConnection("jdbc:postgresql://" + host, properties)) {
            Main main = new Main(connection, Integer.parseInt(System.getenv("SESSION")));
            tell("prepared", main::prepared);
            tell("types", main::types);
            tell("changed", main::changed);
            tell("batches", main::batches);
            tell("transactions", main::transactions);
            tell("cursors", main::cursors);
            tell("copies", main::copies);
            tell("listened", main::listened);
            tell("refused", main::refused);
            tell("settings", main::settings);
            tell("cancelled", main::cancelled);
        }
    }

    private static void tell(String name, Part part) throws Exception {
        System.out.println(name + " " + part.run().toString().replace("\n", "\\n"));
    }
}

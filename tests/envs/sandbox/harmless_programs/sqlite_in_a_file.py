import sqlite3

for n in range(2):
    with sqlite3.connect("t.db") as db:
        db.execute("create table if not exists t (x)")
        db.execute("insert into t values (?)", (n,))
    db.close()
print(sqlite3.connect("t.db").execute("select sum(x), count(*) from t").fetchall())

# > [(1, 2)]

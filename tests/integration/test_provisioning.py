"""What `grafana/provisioning` lets people who can open a dashboard do: read every view, and nothing else.

Path and initSql are taken from the provisioning file as Grafana would, and run by DuckDB 1.5.4, the plugin's engine.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from tests.support.commands import Place
from tests.support.piperd import WITHOUT_PRIVILEGES
from tests.support.plugin_engine import PROVISIONING, PluginEngine, expand, provisioned
from tests.support.reader_engine import READER_VERSION, require_reader_site
from tests.support.warehouse import GOLD_VIEWS, SILVER_VIEWS

VIEWS = (*SILVER_VIEWS, *GOLD_VIEWS)
MOUNT = "/var/piper"

NO_FILE = "file system operations are disabled by configuration"
NO_EXTENSION = "Loading external extensions is disabled through configuration"
NO_SETTING = "the configuration has been locked"
NO_DATABASE_CHANGE = "attached in read-only mode"
NO_PERMISSION = "Permission denied"


@pytest.fixture(scope="module")
def site() -> Path:
    return require_reader_site()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A warehouse with rows in every view, quarantined lines and a masking key. Tests only add to it."""
    return a_warehouse(tmp_path_factory.mktemp("provisioning"))


def a_warehouse(root: Path) -> Place:
    place = Place(root)
    ingest(place, seed=1)
    (place.data / "silver-old").mkdir()
    (place.data / "silver-old" / "rows.csv").write_text("a\n1\n")
    return place


def ingest(place: Place, *, seed: int) -> None:
    place.simulate(1500, days=2, seed=seed)
    done = place.piper("ingest", env={"PIPER_PRIVACY__MASK_USERS": "true"})
    assert done.returncode == 0, done.stderr


@contextmanager
def grafana(
    place: Place, site: Path, *, data_root: Path | None = None, options: str = "", lock: bool = True, **how: Any
) -> Iterator[PluginEngine]:
    """The plugin's driver instance for the provisioned datasource.

    Where the file says /var/piper there is a directory of this test's with what the mount would show. `options` is what
    a build of the plugin adds to the path by itself.
    """
    mount = place.root / "var-piper"
    if not mount.exists():
        shutil.copytree(place.layout.warehouse, mount)
    settings = provisioned("piper-duckdb", {"PIPER_PATHS__DATA_ROOT": str(data_root or place.data)})["jsonData"]
    dsn, init_sql = (settings[key].replace(MOUNT, str(mount)) for key in ("path", "initSql"))
    with PluginEngine(site, dsn + options, init_sql if lock else "SELECT 1", **how) as engine:
        yield engine


def counts(engine: PluginEngine, connection: int = 0) -> dict[str, int]:
    """Rows of every view that the catalog has; those that dashboards build on hold some."""
    names = [row[0] for row in engine.rows("SELECT view_name FROM duckdb_views() WHERE NOT internal", connection)]
    found = {view: int(engine.rows(f"SELECT count(*) FROM {view}", connection)[0][0]) for view in names}
    assert all(found[view] > 0 for view in VIEWS), found
    return found


def assert_refused(engine: PluginEngine, statements: dict[str, str]) -> None:
    """Each statement fails for the reason given; all that do not are named."""
    got = {sql: engine.ask(sql) for sql in statements}
    wrong = {sql: answer for sql, answer in got.items() if statements[sql] not in (answer.error or "")}
    assert not wrong, wrong


# ---- what works ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "added", ["", "&custom_user_agent=grafana", "&access_mode=read_only&custom_user_agent=grafana"]
)
def test_every_build_of_the_plugin_opens_it_read_only_and_gets_every_view(place: Place, site: Path, added: str) -> None:
    with grafana(place, site, options=added) as engine:
        assert engine.rows("SELECT version(), current_setting('access_mode')") == [[f"v{READER_VERSION}", "read_only"]]
        found = counts(engine)
        assert counts(engine, connection=1) == found, "a connection without initSql of its own"


def test_an_open_datasource_sees_what_is_swapped_in_later(place: Place, site: Path) -> None:
    with grafana(place, site) as engine:
        before = counts(engine)
        ingest(place, seed=2)
        after = counts(engine)
        assert after["silver_events"] > before["silver_events"] + 1000
        assert all(after[view] >= before[view] for view in SILVER_VIEWS)
        total = int(engine.rows("SELECT sum(total_events)::BIGINT FROM gold_data_quality_daily")[0][0])
        assert total == after["silver_events"]


def test_a_data_root_that_is_reached_through_a_link_works_by_that_name(tmp_path: Path, site: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to("disk")
    place = a_warehouse(tmp_path)
    with grafana(place, site) as engine:
        counts(engine)
        assert_refused(engine, {f"FROM read_text('{place.data}/state/catalog.sha256')": NO_FILE})


def test_the_limits_are_in_force_on_every_connection(place: Place, site: Path) -> None:
    names = ("memory_limit", "threads", "temp_directory", "enable_external_file_cache", "lock_configuration")
    with grafana(place, site) as engine:
        wanted = ", ".join(f"current_setting('{name}')" for name in names)
        for connection in (0, 1):
            assert engine.rows(f"SELECT {wanted}", connection) == [["1.0 GiB", "2", "", "False", "True"]]


# ---- what does not ---------------------------------------------------------------------------------------------------


def secrets_of(place: Place) -> list[str]:
    """Files that exist, each under a name that a viewer might try."""
    data, link = place.data, place.layout.silver / "away"
    if not link.exists():
        link.symlink_to("/etc")
        (place.layout.warehouse / "key").symlink_to(place.layout.state / "mask.key")
    quarantined = next(place.layout.quarantine.glob("*/*.jsonl"))
    return [
        "/etc/passwd",
        "/proc/self/environ",
        f"{data}/state/mask.key",
        f"{data}/state/catalog.sha256",
        f"{data}/silver/../state/mask.key",
        f"{data}/silver//./../state/mask.key",
        f"file://{data}/silver/../state/mask.key",
        f"{data}/warehouse/../silver/../state/mask.key",
        f"{data}/silver-old/rows.csv",
        f"{data}/silver/away/passwd",
        f"{data}/warehouse/key",
        str(quarantined),
        str(next(place.layout.run_logs.glob("*/*"))),
        str(next(place.raw.glob("*/*/*.jsonl"))),
    ]


def test_no_other_file_can_be_read(place: Place, site: Path) -> None:
    files = secrets_of(place)
    functions = (
        "read_text('{}')",
        "read_blob('{}')",
        "read_csv('{}')",
        "read_json('{}')",
        "read_parquet('{}')",
        "sniff_csv('{}')",
    )
    with grafana(place, site, lock=False) as engine:
        for file in files:
            assert engine.ask(f"SELECT size FROM read_blob('{file}')").rows, f"nobody could read {file} anyway"
    with grafana(place, site) as engine:
        engine.rows("CREATE TEMP TABLE lines (line VARCHAR)")
        for file in files:
            assert_refused(engine, {f"FROM {function.format(file)}": NO_FILE for function in functions})
            assert_refused(engine, {f"FROM query('FROM read_text(''{file}'')')": NO_FILE})
            assert_refused(engine, {f"COPY lines FROM '{file}'": NO_FILE})
            # A bare name is taken for a file by its ending only.
            known = file.endswith((".csv", ".jsonl"))
            assert_refused(engine, {f"FROM '{file}'": NO_FILE if known else "does not exist"})


def test_no_other_folder_can_be_listed(place: Place, site: Path) -> None:
    root = place.data
    patterns = ["/**", "/etc/*", f"{root}/*", f"{root}/*/*", f"{root}/silver*/*", f"{root}/state/*"]
    patterns += [f"{root}/silver/../*", f"{root}/warehouse/../state/*", f"{root}/silver/away/*"]
    secrets_of(place)  # makes the link `away`
    with grafana(place, site) as engine:
        assert len(engine.rows(f"FROM glob('{root}/silver/**/*.parquet')")) > 10
        assert_refused(engine, {f"FROM glob('{pattern}')": NO_FILE for pattern in patterns})
        assert_refused(engine, {f"FROM read_text('{root}/silver/**/../../state/*')": NO_FILE})


def test_no_other_database_can_be_opened(place: Place, site: Path, tmp_path: Path) -> None:
    own = tmp_path / "grafana.db"
    with sqlite3.connect(own) as con:
        con.execute("CREATE TABLE user (name TEXT)")
    other = tmp_path / "other.duckdb"
    duckdb.connect(str(other)).execute("CREATE TABLE t AS SELECT 1 AS a").close()
    manifest, gold = place.layout.manifest, place.layout.gold_state
    with grafana(place, site) as engine:
        assert_refused(
            engine,
            {
                f"ATTACH '{own}' AS x (TYPE sqlite)": NO_EXTENSION,
                f"ATTACH '{own}' AS x": NO_FILE,
                f"FROM read_blob('{own}')": NO_FILE,
                f"ATTACH '{other}' AS x (READ_ONLY)": NO_FILE,
                f"FROM read_duckdb('{other}', table_name = 't')": NO_FILE,
                f"ATTACH '{manifest}' AS x (READ_ONLY)": NO_FILE,
                f"FROM read_duckdb('{manifest}', table_name = 'sources')": NO_FILE,
                f"FROM read_duckdb('{gold}', table_name = 'gold_data_quality_daily')": NO_FILE,
                "ATTACH ':memory:' AS x": "in-memory database in read-only mode",
            },
        )


def test_no_extension_can_be_installed_or_loaded(place: Place, site: Path) -> None:
    with grafana(place, site) as engine:
        assert_refused(
            engine,
            {
                "INSTALL httpfs": NO_FILE,
                "INSTALL sqlite FROM community": NO_FILE,
                "LOAD httpfs": NO_EXTENSION,
                "LOAD '/tmp/own.duckdb_extension'": NO_EXTENSION,
                "UPDATE EXTENSIONS": NO_FILE,
                "FROM read_text('https://example.invalid/x')": NO_FILE,
                "FROM read_parquet('s3://bucket/x')": NO_FILE,
            },
        )


def test_no_setting_can_be_changed(place: Place, site: Path) -> None:
    statements = [
        "SET memory_limit = '64GiB'",
        "SET GLOBAL threads = 64",
        "PRAGMA threads = 64",
        "RESET memory_limit",
        "RESET GLOBAL allowed_directories",
        "SET GLOBAL allowed_directories = ['/']",
        "SET GLOBAL allowed_paths = ['/etc/passwd']",
        "SET enable_external_access = true",
        "RESET GLOBAL enable_external_access",
        "SET lock_configuration = false",
        "RESET GLOBAL lock_configuration",
        "SET temp_directory = '/tmp'",
        "SET home_directory = '/'",
        "SET extension_directory = '/tmp'",
        "SET file_search_path = '/etc'",
        "SET log_query_path = '/tmp/queries'",
        "PRAGMA profiling_output = '/tmp/profile'",
        "SET TimeZone = 'Europe/Berlin'",
    ]
    with grafana(place, site) as engine:
        assert_refused(engine, dict.fromkeys(statements, NO_SETTING))
        assert_refused(engine, {"SELECT getenv('HOME')": "getenv does not exist"})


def test_nothing_can_be_written(tmp_path: Path, site: Path) -> None:
    place = a_warehouse(tmp_path)
    data = place.data
    before = state_of(data)
    for path in [data, *data.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    (tmp_path / "open").mkdir()
    try:
        # In the two directories DuckDB itself would write: that is for permissions and the read-only mount to refuse.
        with grafana(place, site, prefix=WITHOUT_PRIVILEGES) as engine:
            assert_refused(
                engine,
                {
                    "CREATE TABLE t AS SELECT 1": NO_DATABASE_CHANGE,
                    "CREATE OR REPLACE VIEW silver_events AS SELECT 1": NO_DATABASE_CHANGE,
                    "DROP VIEW silver_events": NO_DATABASE_CHANGE,
                    f"COPY (SELECT 1) TO '{tmp_path}/open/x.csv'": NO_FILE,
                    f"COPY (SELECT 1) TO '{data}/state/x.csv'": NO_FILE,
                    f"EXPORT DATABASE '{tmp_path}/open/x'": NO_FILE,
                    f"COPY (SELECT 1) TO '{data}/warehouse/x.csv'": NO_PERMISSION,
                    f"COPY (SELECT 1) TO '{data}/warehouse/gold.duckdb'": NO_PERMISSION,
                    f"COPY (SELECT 1 AS a) TO '{data}/silver/events/x.parquet'": NO_PERMISSION,
                    f"ATTACH '{data}/warehouse/x.duckdb' AS x (READ_WRITE)": NO_PERMISSION,
                    f"ATTACH '{data}/warehouse/gold.duckdb' AS x (READ_WRITE)": NO_PERMISSION,
                },
            )
            counts(engine)
    finally:
        for path in [data, *data.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert state_of(data) == before
    assert list((tmp_path / "open").iterdir()) == []


def state_of(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*")}


def test_a_viewer_can_disturb_his_own_connection_only(place: Place, site: Path) -> None:
    with grafana(place, site) as engine:
        real = engine.rows("FROM gold_data_quality_daily", connection=1)
        engine.rows("CREATE TEMP VIEW gold_data_quality_daily AS SELECT 42 AS total_events", connection=0)
        assert engine.rows("FROM gold_data_quality_daily", connection=0) == [["42"]]
        assert engine.rows("FROM gold_data_quality_daily", connection=1) == real


def test_without_the_data_root_variable_everything_is_refused(place: Place, site: Path) -> None:
    settings = provisioned("piper-duckdb", {})["jsonData"]
    mount = place.root / "var-empty"
    mount.mkdir()
    shutil.copy(place.layout.catalog, mount)
    dsn, init_sql = (settings[key].replace(MOUNT, str(mount)) for key in ("path", "initSql"))
    with PluginEngine(site, dsn, init_sql) as engine:
        assert_refused(engine, {f"FROM {view}": NO_FILE for view in VIEWS})
        assert_refused(engine, {"FROM read_text('/etc/passwd')": NO_FILE, "SET threads = 3": NO_SETTING})


# ---- the files themselves --------------------------------------------------------------------------------------------


def test_datasources_have_the_uids_that_dashboards_name_and_cannot_be_edited() -> None:
    document = yaml.safe_load((PROVISIONING / "datasources" / "piper.yml").read_text())
    found = {source["uid"]: source for source in document["datasources"]}
    assert {uid: source["type"] for uid, source in found.items()} == {
        "piper-duckdb": "motherduck-duckdb-datasource",
        "piper-prometheus": "prometheus",
    }
    assert all(source["editable"] is False and source["access"] == "proxy" for source in found.values())
    assert found["piper-duckdb"]["jsonData"]["readOnly"] is True
    assert expand(found["piper-prometheus"]["url"], {"PROMETHEUS_URL": "http://p:9090"}) == "http://p:9090"


def test_every_datasource_that_a_dashboard_names_is_provisioned() -> None:
    dashboards = list((PROVISIONING.parent / "dashboards").glob("*.json"))
    assert dashboards
    named = {
        uid for path in dashboards for uid in re.findall(r'"datasource": \{[^}]*"uid": "([^"$]+)"', path.read_text())
    }
    assert named - {"-- Grafana --", "grafana"} <= {"piper-duckdb", "piper-prometheus"}
    assert "piper-duckdb" in named


def test_dashboards_are_provisioned_from_files_and_not_edited_in_the_browser() -> None:
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "piper.yml").read_text())["providers"]
    assert (provider["type"], provider["folder"]) == ("file", "piper")
    assert (provider["allowUiUpdates"], provider["disableDeletion"]) == (False, True)
    assert Path(provider["options"]["path"]).is_absolute()


def test_grafana_leaves_a_doubled_dollar_and_empties_an_unknown_variable() -> None:
    assert expand({"a": ["$X/${Y}/$$X/$Z"]}, {"X": "1", "Y": "2"}) == {"a": ["1/2/$X/"]}

"""The catalog: what ships is complete, users' rows fill their gaps from it, and nonsense is refused by place."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from crucible.catalog.offers import add_prices, load_catalog, stale_warning
from crucible.errors import ConfigError

pytestmark = pytest.mark.usefixtures("home")


def test_every_shipped_row_says_what_it_is_and_where_it_is_from() -> None:
    offers = load_catalog()
    assert len({offer.key for offer in offers}) == len(offers) >= 40
    assert {offer.pool for offer in offers} == {"local", "docker-gpu", "ec2-spot", "ec2-on-demand", "modal"}
    for offer in offers:
        assert offer.source, offer.key
        if offer.own_machine:
            continue
        assert offer.as_of is not None, offer.key
        assert offer.gpus >= 1, offer.key
        assert offer.peak_tflops_fp32, offer.key
        assert offer.peak_tflops_fp16, offer.key
        assert offer.peak_tflops_bf16 is not None, offer.key
        assert offer.memory_gb_per_second, offer.key
        assert offer.gpu_memory_gib, offer.key
        assert offer.on_demand_usd_per_hour, offer.key
        assert offer.usd_per_hour <= offer.on_demand_usd_per_hour, offer.key
        assert offer.interruptible == (offer.pool != "ec2-on-demand"), offer.key


def test_the_types_that_the_pools_offer_are_all_there() -> None:
    keys = {offer.key for offer in load_catalog()}
    for instance in ("g4dn.xlarge", "g5.xlarge", "g6.xlarge", "g6.12xlarge", "p4d.24xlarge", "p5.48xlarge"):
        assert {f"ec2-spot/{instance}", f"ec2-on-demand/{instance}"} <= keys
    assert {"modal/T4", "modal/H100", "docker-gpu/own-gpu", "local/this-machine"} <= keys


def test_a_users_row_overrides_the_price_and_keeps_the_rest(home: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.csv"
    own.write_text("pool,instance,usd_per_hour,source\nec2-spot,g6.xlarge,0.11,my contract\n")
    changed = next(offer for offer in load_catalog(own) if offer.key == "ec2-spot/g6.xlarge")
    shipped = next(offer for offer in load_catalog() if offer.key == "ec2-spot/g6.xlarge")
    assert changed == replace(shipped, usd_per_hour=0.11, source="my contract", assumed=())


def test_a_new_machine_takes_its_figures_from_the_same_gpu(home: Path) -> None:
    home.mkdir()
    (home / "offers.csv").write_text("pool,instance,gpu,gpus,usd_per_hour\nlab,node7,H100,2,0\n")
    node = next(offer for offer in load_catalog() if offer.key == "lab/node7")
    assert (node.gpus, node.peak_tflops_bf16, node.gpu_memory_gib) == (2, 989, 79.2)


def test_refreshed_prices_are_kept_beside_earlier_ones(home: Path) -> None:
    offers = {offer.key: offer for offer in load_catalog()}
    day = date(2026, 11, 1)
    add_prices([replace(offers["ec2-spot/g5.xlarge"], usd_per_hour=0.3, as_of=day)])
    add_prices([replace(offers["modal/T4"], usd_per_hour=0.7, as_of=day)])
    now = {offer.key: offer for offer in load_catalog()}
    assert now["ec2-spot/g5.xlarge"].usd_per_hour == 0.3
    assert now["modal/T4"].usd_per_hour == 0.7
    assert now["modal/T4"].as_of == day
    assert now["modal/H100"] == offers["modal/H100"]


def test_old_prices_warn_and_own_machines_never_do() -> None:
    offers = load_catalog()
    assert stale_warning(offers, date(2025, 9, 2)) is None
    warning = stale_warning(offers, date(2026, 11, 22))
    assert warning is not None
    assert "older than 30 days" in warning
    assert stale_warning([offer for offer in offers if offer.own_machine], date(2026, 11, 22)) is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("pool,instance\nlab,a\n", r"line 2: usd_per_hour is missing"),
        (
            "pool,instance,usd_per_hour\nlab,a,cheap\n",
            r"line 2: usd_per_hour = 'cheap' is not valid; it must",
        ),
        ("pool,instance,usd_per_hour\nlab,a,-1\n", r"line 2: usd_per_hour = '-1' is not valid"),
        ("pool,instance,usd_per_hour\nlab,a,nan\n", r"usd_per_hour = 'nan' is not valid; it must be a finite number"),
        ("pool,instance,usd_per_hour,mtbf_hours\nlab,a,1,0\n", r"mtbf_hours = '0'"),
        ("pool,instance,usd_per_hour,gpus\nlab,a,1,1.5\n", r"gpus = '1.5'"),
        ("pool,instance,usd_per_hour,as_of\nlab,a,1,May\n", r"as_of = 'May' is not valid; it must be a valid date"),
        ("pool,instance,usd_per_hour,tenancy\nlab,a,1,mine\n", r"tenancy = 'mine'"),
        ("pool,instance,price\nlab,a,1\n", r"unknown column 'price'"),
    ],
)
def test_a_wrong_table_is_refused_with_its_place(tmp_path: Path, table: str, message: str) -> None:
    own = tmp_path / "mine.csv"
    own.write_text(table)
    with pytest.raises(ConfigError, match=message):
        load_catalog(own)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_catalog(tmp_path / "none.csv")


def test_an_offers_file_may_start_with_a_byte_order_mark_and_a_name_may_be_absurd(tmp_path: Path) -> None:
    table = tmp_path / "offers.csv"
    table.write_bytes("\ufeffpool,instance,usd_per_hour\nmine,box,1\n".encode())
    assert any(offer.key == "mine/box" for offer in load_catalog(table))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_catalog(tmp_path / ("x" * 5000))


def test_refreshed_prices_that_a_spreadsheet_has_saved_are_added_to() -> None:
    file = add_prices([])
    file.write_bytes("\ufeffpool,instance,usd_per_hour\nmine,box,1\n".encode())
    add_prices([])
    assert any(offer.key == "mine/box" for offer in load_catalog())


def test_a_cell_may_hold_any_text_and_an_open_quote_is_named(tmp_path: Path) -> None:
    table = tmp_path / "offers.csv"
    table.write_text("pool,instance,usd_per_hour,source\nmine,box,1,list\u2028of May\n", encoding="utf-8")
    (box,) = [offer for offer in load_catalog(table) if offer.key == "mine/box"]
    assert box.source == "list\u2028of May"
    table.write_text(f'pool,instance,usd_per_hour\nmine,"box{"x" * 200_000},1\n')
    with pytest.raises(ConfigError, match="is a quote left open"):
        load_catalog(table)

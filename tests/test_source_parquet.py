"""Parquet that others write, with types that polars cannot read or write."""

import base64
import zlib
from pathlib import Path

import pytest
from tables import refused_rows, write

INTERVAL = (  # DuckDB 2.0: copy (select 'a' as id, interval 3 day as v)
    "c-l>nO>4qH5QZmd5fK$U%(4qP<dTq<Z7{`BD_#^Yy-EK-NZbuwx=A3`J@kk7>?9uAWtREieRzjC?mjXEoZv*FPsIpF03HAo)Nthgrv1CSB|u+nUx"
    "3fl<@BY>{CxV<b%FPQ(+Ie4R78?F@xVP7Jp%JZAY=>yP6dMK6-YxSnT*F<?iCaak|8e^AOi9v4>IbR`M`K?KsIa>uipOztYUsVW)(p^xUG|#=395"
    "Juz6|Qw$3YKspqq%?drmsAFZBT20S^C`mhh3?#`xdLie05(=1HNi?J$PtJigwt@PXSLC64r0)FWq>0noczBRT"
)
LISTED_JSON = (  # pyarrow 26: a list of `pa.json_()`
    "c-l=;O;f@!5RH|o9=N8{%=Ewkdh!EN9Ch@tMOr~rr~@iDsGa)JLM;Up$A9Ec@khBygSazIHoNb=-A&U5caIWUq{S_&prcaNAcQF56YDx(Kfh>>wW"
    ">r{C*G4E4X8q@ioP~Oj@mj!KsBf5!skhf37Rh{`i39+kv~dHX6pyjn!*fbn8cuYR#FK&TAK;@5=IfBHMOR>*)XsRf-<LCj+qK!wrmH}in*yZ2{ZI"
    "OxbDr}N!E-0y}rwB5m*4wfy^!e=3oV20|ZbDM9f0K6?bX?4G~!FXm!4HrPt*=<X><dp=(KHs9)KFH2))ss#y_%dJH5bka>Vxe!#j8fCuLiY4bS9-"
    "rSW)O+=QXNKq#&_wUMCfTQZcU;U3Z&i}qT3l+!y@S@}WRunIWl>@0~S>3SN?k(cbzi`9h=sL#S;V`n(epap_?oI5$a<bLv(i~CAzU{sq-`_;NgGZ"
    "+~^(x_P_!6i6d-tjD*yV@L@=`nh`Da8g#DnB*>ZjXY9B&VjWIQj-{ABVx9u+EwJLR1{X7D$d;9qa!^ZW&PBc!<"
)


@pytest.mark.case("T9", "T16")
@pytest.mark.parametrize(("packed", "words"), [(INTERVAL, "an interval"), (LISTED_JSON, "arrow.json")])
def test_a_type_that_is_not_read_is_named_with_its_column(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], packed: str, words: str
) -> None:
    path = write(tmp_path / "a.parquet", zlib.decompress(base64.b85decode(packed)))
    error = refused_rows(path)
    assert f"column `v` of {path} is " in error.message and words in error.message and "text" in error.hint
    assert "panicked" not in capfd.readouterr().err

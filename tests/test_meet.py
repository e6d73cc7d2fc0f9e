"""The table of both searches: what is picked, and that no function is in it twice."""

from meet import pick, share

from dasvit import Genotype, genotypes


def row(number, parameters, dss, released):
    return {"number": number, "parameters": parameters, "scores": {"dss": {"total": dss}, "dss-released": released}}


def test_an_encoder_that_is_picked_twice_is_one_encoder():
    rows = [row(i, p, d, {"total": r}) for i, p, d, r in [(3, 100, 9.0, 1.0), (5, 101, 1.0, 2.0), (8, 200, 5.0, 7.0)]]
    del rows[0]["scores"]["dss-released"]  # failed
    assert pick(rows, 100) == {
        3: ["dss, whole space", "dss, equal size"],
        8: ["dss-released, whole space", "params, whole space"],
        5: ["dss-released, equal size"],
    }


def test_rows_of_the_same_function_are_shared_if_all_seeds_are_there():
    found = '{"format": 1, "nodes": [[[0, "msa:12"], [1, "skip"]], [[0, "mlp:1"], [1, "mlp:2"]]]}'
    same = Genotype.from_json(found.replace("msa:12", "x").replace("mlp:1", "msa:12").replace("x", "mlp:1"))
    assert same.to_json() != found
    table = [{"networks": [name], "genotype": genotype, "seed": seed}
             for seed in range(2) for name, genotype in (("found", found), ("vit", "vit_b16"))]  # fmt: skip
    assert not share(table, same, ["pick"], seeds=3)
    assert not share(table, genotypes()["dasvit-cifar10"], ["pick"], seeds=2)
    assert all(len(row["networks"]) == 1 for row in table)
    assert share(table, same, ["pick", "another"], seeds=2)
    assert [row["networks"] for row in table] == [["found", "pick", "another"], ["vit"]] * 2

def test_set_and_get(client):
    assert client.set("key", "value")
    assert client.get("key") == b"value"
    assert client.get("nothing") is None


def test_large_value_round_trip(client):
    value = bytes(range(256)) * 4096 * 5  # 5 MiB: lives in an extent
    client.set("large", value)
    assert client.get("large") == value
    assert client.strlen("large") == len(value)
    assert client.getrange("large", 100000, 299999) == value[100000:300000]

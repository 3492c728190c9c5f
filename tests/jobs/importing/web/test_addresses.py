"""`make test TESTS=tests/jobs/importing/web`."""

from __future__ import annotations

import pytest

from cma_clip_core.content.pictures import PictureError
from jobs.importing.web.addresses import AllowedHosts, may_connect
from jobs.settings import Settings


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200", "0.0.0.0", "224.0.0.1",
        "240.0.0.1", "255.255.255.255", "192.0.0.192", "168.63.129.16", "::1", "::", "fe80::1%eth0", "fd00:ec2::254", "ff02::1",
        "::ffff:127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::", "::7f00:1", "fec0::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_on_the_public_internet_are_refused(address: str) -> None:
    assert not may_connect(address, private=False)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:2800:21f:cb07::1", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public_addresses_may_be_connected(address: str) -> None:
    assert may_connect(address, private=False)


@pytest.mark.parametrize(("address", "allowed"), [("127.0.0.1", True), ("10.0.0.1", True), ("::1", True), ("fd12::1", True),
                                                  ("169.254.169.254", False), ("fe80::1", False), ("224.0.0.1", False)])  # fmt: skip
def test_a_private_host_may_be_private_but_not_link_local(address: str, allowed: bool) -> None:
    assert may_connect(address, private=True) == allowed


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("https://shop.example/1.jpg", None),
        ("https://SHOP.example./1.jpg", None),
        ("https://a.cdn.example/1.jpg", None),
        ("https://odd.example:8443/1.jpg", None),
        ("http://plain.example/1.jpg", None),
        ("https://plain.example/1.jpg", None),
        ("http://shop.example/1.jpg", "host_not_allowed"),
        ("https://cdn.example/1.jpg", "host_not_allowed"),
        ("https://shop.example.evil.example/1.jpg", "host_not_allowed"),
        ("https://evilcdn.example/1.jpg", "host_not_allowed"),
        ("https://shop.example:22/1.jpg", "host_not_allowed"),
        ("https://odd.example/1.jpg", "host_not_allowed"),
        ("https://user:secret@shop.example/1.jpg", "forbidden"),
        ("https://shop.example:99999/1.jpg", "forbidden"),
        ("https://[::1/1.jpg", "forbidden"),
        ("https:///1.jpg", "forbidden"),
        ("https://0x7f.1/1.jpg", "forbidden"),
        ("https://017700000001/1.jpg", "forbidden"),
        ("https://[::ffff:169.254.169.254]/1.jpg", "forbidden"),
        ("https://shop.example/" + "a" * 5_000, "forbidden"),
    ],
)
def test_only_named_hosts_at_named_ports_are_allowed(url: str, status: str | None) -> None:
    hosts = AllowedHosts(
        ["shop.example", "*.cdn.example", "odd.example:8443", "http://plain.example", "0x7f.1", "017700000001",
         "[::ffff:169.254.169.254]"]
    )  # fmt: skip
    if status is None:
        assert not hosts.check(url).private
        return
    with pytest.raises(PictureError) as caught:
        hosts.check(url)
    assert caught.value.status == status
    assert "secret" not in caught.value.detail


@pytest.mark.parametrize("host", ["https://shop.com", "shop.com/pictures", "*", "shop.com:0", "a b"])
def test_a_setting_that_is_not_a_host_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"give shop\.com"):
        Settings(picture_hosts=(host,))

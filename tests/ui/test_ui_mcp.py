"""The endpoints as tools of an MCP server, where its package is: `pip install "gradio[mcp]"`."""

import asyncio

import pytest
from app_server import NAMES

mcp = pytest.importorskip("mcp", reason="the package that gradio[mcp] installs")


async def conversation(url: str):
    from mcp.client.streamable_http import streamablehttp_client

    async with (
        streamablehttp_client(f"{url}/gradio_api/mcp/") as (read, write, _),
        mcp.ClientSession(read, write) as session,
    ):
        await session.initialize()
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        made = await session.call_tool("generate", {"num_images": 1, "steps": 2, "seed": 5})
        refused = await session.call_tool("generate", {"num_images": -1})
        return tools, made, refused


def test_tools_of_an_mcp_server(server):
    tools, made, refused = asyncio.run(conversation(server.url))
    assert sorted(tools) == ["compare", "generate", "noise"]
    assert tools["generate"].inputSchema["properties"]["steps"]["type"] == "integer"
    assert not made.isError and NAMES[5 % 3] in made.content[0].text
    assert refused.isError and refused.content[0].text.startswith("Number of images must be")

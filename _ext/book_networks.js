/* Buttons above the networks leave only the codes in one framework. */
(() => {
  const box = document.querySelector(".framework-filter");
  const tables = [...document.querySelectorAll("table.codes")];
  const rows = table => [...table.tBodies[0].rows];
  const framework = row => row.cells[1].textContent.trim();
  const section = table => table.closest("section");
  const make = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    element.textContent = text;
    for (const [key, value] of Object.entries(attributes))
      element.setAttribute(key, value);
    return element;
  };

  const group = make("div", "", {role: "group", "aria-label": "Framework"});
  const said = make("p", "", {role: "status"});
  const none = new Map(tables.map(table => [table, make("p", "")]));
  none.forEach((note, table) => table.after(note));
  const choose = (button, name) => {
    for (const other of group.children)
      other.setAttribute("aria-pressed", other === button);
    const links = [];
    for (const table of tables) {
      for (const row of rows(table)) row.hidden = name && framework(row) !== name;
      table.hidden = rows(table).every(row => row.hidden);
      none.get(table).textContent = table.hidden ? `No code in ${name} listed.` : "";
      const title = section(table).querySelector("h2").firstChild.textContent;
      if (!table.hidden)
        links.push(make("a", title, {href: "#" + section(table).id}), "; ");
    }
    said.replaceChildren(...name ? [`In ${name}: `, ...links.slice(0, -1), "."] :
      ["All are shown."]);
  };
  const names = new Set(tables.flatMap(rows).map(framework));
  for (const name of ["", ...[...names].sort()]) {
    const button = make("button", name || "all", {type: "button"});
    button.onclick = () => choose(button, name);
    group.append(button);
  }
  box.append(make("p", "Show the codes below that are in:"), group, said);
  choose(group.firstChild, "");
})();
